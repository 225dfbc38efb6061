"""Against a running Prefect server, into an S3-protocol server."""

import time

import pytest

from tests.e2e.conftest import Command, api
from tests.servers import S3Server


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
    assert {"ganmill-classes", "ganmill-scores", "ganmill-report", "ganmill-version"} <= set(artifacts)
    assert ended.result["version"] in artifacts["ganmill-version"]["data"]
    assert "fd_domain" in artifacts["ganmill-scores"]["data"]

    events = api(prefect_server, "/events/filter", {"filter": {"event": {"prefix": ["ganmill."]}}})["events"]
    assert [e["event"] for e in events] == ["ganmill.dataset.published"]
    assert events[0]["payload"]["version"] == ended.result["version"]
    deadline = time.monotonic() + 60                         # the server stores them behind a queue
    while "kimg" not in (logs := " ".join(line["message"] for line in api(prefect_server, "/logs/filter", {"logs": {}}))):
        assert time.monotonic() < deadline, logs
        time.sleep(0.5)

    assert command.run("verify", ended.result["dataset_url"], "--deep").status == 0
    assert command.run("run", str(config), "--json").result["status"] == "up to date"
    assert command.left_processes() == [] or all("prefect" in line for line in command.left_processes())


@pytest.mark.parametrize("arguments", [["run"], ["run", "gone.yaml"], ["show"], ["verify", "./nothing-here"]])
def test_bad_usage_ends_in_one_message(command: Command, arguments: list[str]) -> None:
    ended = command.run(*arguments)
    assert ended.status in (1, 2) and "Traceback" not in ended.err and ended.err.strip()
