"""A worker that is killed in mid-run, and a run that is cancelled on Prefect's page: the next run goes on from there."""

import json
import time
from collections.abc import Callable
from typing import Any

import fsspec
import psutil
import pytest

from tests.e2e.conftest import Command, api
from tests.e2e.nightly import Watcher, impatient, kill_tree, worker
from tests.servers import S3Server

PATIENCE_S = 600
KIMG = 100.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def command(command: Command) -> Command:
    return impatient(command)


class Nightly:
    """The deployment `ganmill/tiny`, its bucket and its runs."""

    def __init__(self, command: Command, server: str, s3_server: S3Server) -> None:
        self.bucket = s3_server.new_bucket()
        command.env |= {"PREFECT_API_URL": server, **s3_server.environment}
        self.command, self.server, self.watch = command, server, Watcher(server)
        self.fs = fsspec.filesystem("s3", **s3_server.options, use_listings_cache=False, skip_instance_cache=True)

    def deploy(self, **sections: Any) -> str:
        """The deployment's id; without a schedule, each firing is the test's."""
        config = self.command.config(
            publish={"url": f"s3://{self.bucket}/sets"},
            train={"model": "dcgan", "budget": {"kimg": KIMG}, "options": {"width": 8, "checkpoint_every_kimg": 2.0}}, **sections)
        ended = self.command.run("deploy", str(config), "--json")
        assert ended.status == 0, ended.err
        return str(ended.result["deployment_id"])

    def fire(self, deployment: str) -> str:
        """The flow run's id."""
        return str(api(self.server, f"/deployments/{deployment}/create_flow_run")["id"])

    def run(self, flow_run: str) -> dict[str, Any]:
        """What the server says of it now."""
        [found] = api(self.server, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        return dict(found)

    def fire_until_done(self, deployment: str) -> dict[str, Any]:
        """Fires as a schedule would, again as long as the place is taken; the run that completed."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            flow_run = self.fire(deployment)
            ended = self.watch.wait("the run's end", lambda flow_run=flow_run: self.ended(flow_run), PATIENCE_S)
            if ended["state_type"] != "CANCELLED":
                assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
                return dict(ended)
            time.sleep(5)
        pytest.fail("the place of the run that died was not freed")

    def ended(self, flow_run: str) -> dict[str, Any] | None:
        """The run, once it has ended."""
        run = self.run(flow_run)
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    def checkpoints(self, seen: frozenset[str] = frozenset()) -> list[float]:
        """kimg of every whole checkpoint in runs other than those of `seen`."""
        return [json.loads(self.fs.cat_file(f))["kimg"] for f in self.fs.glob(f"{self.bucket}/sets/tiny/runs/*/checkpoints/*.json")
                if f.split("/")[-3] not in seen]

    def runs_in_store(self) -> frozenset[str]:
        """Ids of the runs that have a folder."""
        return frozenset(f.split("/")[-1] for f in self.fs.ls(f"{self.bucket}/sets/tiny/runs", refresh=True))

    def logs_of(self, flow_run: str) -> str:
        """What one run wrote."""
        return "\n".join(line["message"] for line in api(
            self.server, "/logs/filter", {"limit": 200, "logs": {"flow_run_id": {"any_": [flow_run]}}}))


def ray_processes(command: Command) -> list[str]:
    """Processes of Ray that this test's folder started and that still do something."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            line = " ".join(process.info["cmdline"] or [])
            if process.environ().get("TMPDIR") == str(command.temp) and ("ray::" in line or "raylet" in line or "gcs_server" in line):
                found.append(line[:100])
        except psutil.Error:
            continue
    return found


def seconds_until(gone: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """How long it took."""
    began = time.monotonic()
    while not gone():
        assert time.monotonic() - began < patience_s, "still there"
        time.sleep(0.2)
    return time.monotonic() - began


def test_a_killed_worker_and_a_cancelled_run_are_continued(
    command: Command, prefect_server: str, s3_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    nightly = Nightly(command, prefect_server, s3_server)
    deployment = nightly.deploy()
    # the machine goes down in mid-training: worker, run and Ray at once
    with worker(command, "first.log") as process:
        dead = nightly.fire(deployment)
        nightly.watch.wait("a checkpoint", nightly.checkpoints, PATIENCE_S)
        kill_tree(process.pid)
    seconds_until(lambda: not ray_processes(command))
    reached = max(nightly.checkpoints())
    assert reached < KIMG and nightly.run(dead)["state_type"] == "RUNNING", "nobody is there to say otherwise"
    assert not nightly.fs.exists(f"{nightly.bucket}/sets/tiny/LATEST.json")
    interrupted = nightly.runs_in_store()
    with worker(command, "second.log"):
        # the next run continues from the checkpoint, in the same run folder, and publishes
        done = nightly.fire_until_done(deployment)
        nightly.watch.wait("its word on the run page", lambda: "continuing from the checkpoint" in nightly.logs_of(done["id"]), PATIENCE_S)
        assert nightly.runs_in_store() == interrupted and len(interrupted) == 1
        assert max(nightly.checkpoints()) == pytest.approx(KIMG, rel=0.02)
        [first] = nightly.watch.wait("the version", lambda: nightly.watch.events("published"), PATIENCE_S)

        # another config, and someone presses Cancel in mid-training
        assert nightly.deploy(seed=1) == deployment
        cancelled = nightly.fire(deployment)
        nightly.watch.wait("a checkpoint of the new run", lambda: nightly.checkpoints(interrupted), PATIENCE_S)
        api(prefect_server, f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING"}})
        took = seconds_until(lambda: not ray_processes(command))
        with capsys.disabled():
            print(f"\nRay was gone {took:.1f} s after the cancellation (aim: 10 s)")
        ended = nightly.watch.wait("the cancelled run's end", lambda: nightly.ended(cancelled), PATIENCE_S)
        assert ended["state_type"] == "CANCELLED", ended["state"]
        stopped_at = max(nightly.checkpoints(interrupted))
        assert 0 < stopped_at < KIMG
        assert nightly.watch.events("failed") == [] == nightly.watch.events("refused"), "a stop on request is neither"
        # and the next one goes on from there
        again = nightly.fire_until_done(deployment)
        nightly.watch.wait("its word", lambda: "continuing from the checkpoint" in nightly.logs_of(again["id"]), PATIENCE_S)
        assert len(nightly.runs_in_store()) == 2
        _, second = nightly.watch.wait("the second version", lambda: nightly.watch.events("published")[1:] and nightly.watch.events(
            "published"), PATIENCE_S)
        assert second["payload"]["version"] > first["payload"]["version"]
    assert command.run("verify", f"s3://{nightly.bucket}/sets/tiny", "--deep", "--orphans").status == 0
