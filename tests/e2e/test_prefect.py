"""Against a running Prefect server, into an S3-protocol server."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Command, api
from tests.servers import S3Server


def eventually(found: Callable[[], Any], within_s: float = 90) -> Any:
    """What `found` gives as soon as it gives anything: the server stores logs and events behind a queue."""
    deadline = time.monotonic() + within_s
    while not (result := found()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return result


@pytest.mark.slow                                    # a loaded server answers late; and the longest of its kind
def test_the_run_page_tells_the_story(command: Command, prefect_server: str, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    command.env |= {"PREFECT_API_URL": prefect_server, **s3_server.environment}
    config = command.config(publish={"url": f"s3://{bucket}/sets"})
    ended = command.run("run", str(config), "--json")
    assert ended.status == 0, ended.err
    run_id = ended.result["run_id"]

    [flow_run] = api(prefect_server, "/flow_runs/filter")
    assert flow_run["name"] == run_id and flow_run["state_type"] == "COMPLETED"
    assert "secret" not in str(flow_run["parameters"]).lower()
    tasks = {t["name"].rsplit("-", 1)[0]: t["state_type"] for t in api(prefect_server, "/task_runs/filter")}
    assert set(tasks) >= {"begin", "prepare", "train", "evaluate", "gate", "plan", "sample", "publish"}
    assert set(tasks.values()) == {"COMPLETED"} and len(tasks) < 20

    artifacts = {a["key"]: a for a in api(prefect_server, "/artifacts/filter")}
    assert {"ganmill-classes", "ganmill-scores", "ganmill-verdict", "ganmill-samples", "ganmill-nearest", "ganmill-report",
            "ganmill-version"} <= set(artifacts)
    assert artifacts["ganmill-samples"]["data"].startswith("data:image/png;base64,iVBOR")
    assert "gate is off" in artifacts["ganmill-verdict"]["data"] or artifacts["ganmill-verdict"]["data"].startswith("passed")
    assert ended.result["version"] in artifacts["ganmill-version"]["data"]
    assert "fd_domain" in artifacts["ganmill-scores"]["data"]

    asked = {"filter": {"event": {"prefix": ["ganmill."]}}}
    events = eventually(lambda: api(prefect_server, "/events/filter", asked)["events"])
    assert [e["event"] for e in events] == ["ganmill.dataset.published"]
    assert events[0]["payload"]["version"] == ended.result["version"]
    assert eventually(lambda: [line for line in api(prefect_server, "/logs/filter", {"logs": {}}) if "kimg" in line["message"]])

    assert command.run("verify", ended.result["dataset_url"], "--deep").status == 0
    assert command.run("run", str(config), "--json").result["status"] == "up to date"
    assert command.left_processes() == [] or all("prefect" in line for line in command.left_processes())


@pytest.mark.parametrize("arguments", [["run"], ["run", "gone.yaml"], ["show"], ["verify", "./nothing-here"]])
def test_bad_usage_ends_in_one_message(command: Command, arguments: list[str]) -> None:
    ended = command.run(*arguments)
    assert ended.status in (1, 2) and "Traceback" not in ended.err and ended.err.strip()
