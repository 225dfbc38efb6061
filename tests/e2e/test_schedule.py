"""A schedule, from the first firing to the day when all goes wrong: a real server, worker, event trigger and S3 server."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.e2e.conftest import Command, api
from tests.e2e.nightly import Watcher, impatient, make_images, worker
from tests.servers import S3Server

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples/train_when_published.py"
EVERY_S = 45
FIRST_RUN_S = 600                                    # all of these are patience, not speed: the machine may be shared
NEXT_RUN_S = 480

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def command(command: Command) -> Command:
    return impatient(command)


def test_from_the_first_firing_to_a_broken_source(command: Command, prefect_server: str, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    command.env |= {"PREFECT_API_URL": prefect_server, "BUCKET": bucket, **s3_server.environment}
    images = command.folder / "images"
    make_images(images, 0, {"round": 12, "square": 24})
    config = command.config(
        "nightly.yaml", source={"format": "imagefolder", "url": "./images"}, publish={"url": "s3://${BUCKET}/sets"},
        prepare={"resolution": 8, "max_bad": 0.0}, train={"model": "mlp", "budget": {"kimg": 0.5}},
        evaluate={"samples": 20, "lift": None},
    )
    deployed = command.run("deploy", str(config), "--schedule", f"every {EVERY_S}s", "--json")
    assert deployed.status == 0, deployed.err
    assert deployed.result["deployment"] == "ganmill/tiny" and deployed.result["workers_online"] == 0
    subprocess.run([sys.executable, str(EXAMPLE)], env=command.env, cwd=command.folder, check=True, timeout=240)
    [kept] = api(prefect_server, "/deployments/filter", {"deployments": {"name": {"any_": ["tiny"]}}})
    assert kept["parameters"]["config"]["publish"]["url"] == "s3://${BUCKET}/sets"
    assert kept["parameters"]["config"]["source"]["url"] == str(images)
    assert "canary-secret" not in str(kept)

    fs = fsspec.filesystem("s3", **s3_server.options, use_listings_cache=False, skip_instance_cache=True)
    watch = Watcher(prefect_server)

    def latest() -> str:
        return str(json.loads(fs.cat_file(f"{bucket}/sets/tiny/LATEST.json"))["version"])

    def trained(version: str) -> list[dict[str, Any]]:
        return [r for r in watch.runs("train-classifier")
                if r["state_type"] == "COMPLETED" and r["parameters"] == {"url": f"s3://{bucket}/sets/tiny", "version": version}]

    with worker(command, "worker.log"):
        # the schedule fires, a version appears
        [first] = watch.wait("the first version", lambda: watch.events("published"), FIRST_RUN_S)
        assert latest() == first["payload"]["version"]
        # the event starts the training job, which reads that version
        watch.wait("the downstream training", lambda: trained(first["payload"]["version"]), NEXT_RUN_S)
        # the next firing finds nothing to do
        watch.wait("a run that says up to date", lambda: watch.events("up-to-date"), NEXT_RUN_S)
        assert "up to date" in watch.logs() and len(watch.events("published")) == 1
        # the source changes: a new version, which the training job gets too
        make_images(images, 1, {"round": 3})
        _, second = watch.wait("the second version", lambda: watch.events("published")[1:] and watch.events("published"), NEXT_RUN_S)
        assert latest() == second["payload"]["version"] > first["payload"]["version"]
        watch.wait("the training on the second version", lambda: trained(second["payload"]["version"]), NEXT_RUN_S)
        # the source is broken: the run fails with the reason, the version stays
        bad = images / "round" / "bad.png"
        bad.write_bytes(b"not a picture")
        [failed] = watch.wait("a failed run", lambda: watch.events("failed")[:1], NEXT_RUN_S)
        assert failed["payload"]["kind"] == "SourceError" and failed["payload"]["name"] == "tiny"
        told = watch.wait("its reason on the run page", lambda: [
            r for r in watch.runs() if r["state_type"] == "FAILED"], NEXT_RUN_S)
        assert "max_bad" in told[0]["state"]["message"] or "unreadable" in told[0]["state"]["message"]
        assert latest() == second["payload"]["version"]
    one_at_a_time([r for r in watch.runs() if r["state_type"] in ("COMPLETED", "FAILED")])
    assert command.run("verify", f"s3://{bucket}/sets/tiny", "--deep").status == 0


def one_at_a_time(runs: list[dict[str, Any]]) -> None:
    """No run began while another went on."""
    spans = sorted((r["start_time"], r["end_time"]) for r in runs)
    assert all(begin >= end for (_, end), (begin, _) in itertools.pairwise(spans)), spans
