"""A schedule, from the first firing to the day when all goes wrong: a real server, worker, event trigger and S3 server."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.e2e.conftest import Command, api
from tests.servers import S3Server

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples/train_when_published.py"
EVERY_S = 45
FIRST_RUN_S = 600                                    # all of these are patience, not speed: the machine may be shared
NEXT_RUN_S = 480

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def command(command: Command) -> Command:
    """With a server that frees the place of a run that died after 30 s, the shortest it allows; 300 s by default."""
    command.env |= {
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5", "PREFECT_WORKER_QUERY_SECONDS": "2",
        "OMP_NUM_THREADS": "1", "GANMILL_LOG_FORMAT": "json",
    }
    return command


@contextmanager
def worker(command: Command, log: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process worker; it and the runs that it started are ended by process id."""
    with (command.folder / log).open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "ganmill", "--type", "process"],
            cwd=command.folder, env=command.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, at once: what a power cut does."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def make_images(folder: Path, seed: int, counts: dict[str, int]) -> None:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / name / f"{seed}-{i}.png")


class Watcher:
    """What a Prefect server has seen."""

    def __init__(self, url: str) -> None:
        self.url = url

    def runs(self, flow: str = "ganmill") -> list[dict[str, Any]]:
        """Flow runs of `flow` that were begun, oldest first."""
        found = api(self.url, "/flow_runs/filter", {
            "flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC",
            "flow_runs": {"state": {"type": {"any_": ["RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}})
        return [r for r in found if r["start_time"] is not None or r["state_type"] == "CANCELLED"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind, oldest first."""
        found = api(self.url, "/events/filter", {"filter": {"event": {"name": [f"ganmill.dataset.{kind}"]}}})["events"]
        return sorted(found, key=lambda e: e["occurred"])

    def logs(self) -> str:
        """All that the runs wrote."""
        return "\n".join(line["message"] for line in api(self.url, "/logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"}))

    def wait(self, what: str, found: Callable[[], Any], patience_s: float) -> Any:
        """What `found` gives once it gives something."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):       # a busy server may keep one question waiting
                value = found()
                if value:
                    return value
            time.sleep(2)
        pytest.fail(f"waited {patience_s} s for {what}; runs: {[(r['state_type'], r['state']['message']) for r in self.runs()]}")


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
        import json

        return str(json.loads(fs.cat_file(f"{bucket}/sets/tiny/LATEST.json"))["version"])

    with worker(command, "worker.log"):
        # the schedule fires, a version appears
        [first] = watch.wait("the first version", lambda: watch.events("published"), FIRST_RUN_S)
        assert latest() == first["payload"]["version"]
        # the event starts the training job, which reads that version
        trained = watch.wait("the downstream training", lambda: [
            r for r in watch.runs("train-classifier") if r["state_type"] == "COMPLETED"], NEXT_RUN_S)
        assert trained[0]["parameters"] == {"url": f"s3://{bucket}/sets/tiny", "version": first["payload"]["version"]}
        # the next firing finds nothing to do
        watch.wait("a run that says up to date", lambda: "up to date" in watch.logs(), NEXT_RUN_S)
        assert len(watch.events("published")) == 1
        # the source is broken: the run fails with the reason, the version stays
        bad = images / "round" / "bad.png"
        bad.write_bytes(b"not a picture")
        [failed] = watch.wait("a failed run", lambda: watch.events("failed")[:1], NEXT_RUN_S)
        assert failed["payload"]["kind"] == "SourceError" and failed["payload"]["name"] == "tiny"
        told = watch.wait("its reason on the run page", lambda: [
            r for r in watch.runs() if r["state_type"] == "FAILED"], 60)
        assert "max_bad" in told[0]["state"]["message"] or "unreadable" in told[0]["state"]["message"]
        assert latest() == first["payload"]["version"]
    one_at_a_time([r for r in watch.runs() if r["state_type"] in ("COMPLETED", "FAILED")])


def one_at_a_time(runs: list[dict[str, Any]]) -> None:
    """No run began while another went on."""
    spans = sorted((r["start_time"], r["end_time"]) for r in runs)
    assert all(begin >= end for (_, end), (begin, _) in itertools.pairwise(spans)), spans
