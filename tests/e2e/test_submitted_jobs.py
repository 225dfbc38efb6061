"""A Ray cluster that goes on by itself: its head with dashboard, jobs by URL, drivers by host:port, other code on its nodes."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Command, api, free_port
from tests.e2e.nightly import Watcher, kill_tree, worker

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 600

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@dataclass(frozen=True)
class Head:
    """A Ray head, as others reach it."""

    gcs: str
    jobs: str


@contextlib.contextmanager
def ray_head(command: Command, code: Path = ROOT) -> Iterator[Head]:
    """A head of two CPUs whose ganmill is that of `code`, with a token without which nobody may run anything there."""
    command.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    port, dashboard, agent, client = free_port(), free_port(), free_port(), free_port()
    bin_folder = Path(sys.executable).parent
    env = {**command.env, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(code),
           "PREFECT_HOME": str(command.folder / "prefect-there")}
    log = (command.folder / "head.log").open("wb")
    head = subprocess.Popen(
        [str(bin_folder / "ray"), "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1",
         f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=2",
         "--object-store-memory=150000000", f"--temp-dir={command.temp}/r",
         "--node-ip-address=127.0.0.1"],
        cwd=command.folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                asked = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {command.env['RAY_AUTH_TOKEN']}"})
                with urllib.request.urlopen(asked, timeout=5):
                    break
            if head.poll() is not None or time.monotonic() > deadline:
                pytest.fail((command.folder / "head.log").read_text()[-3000:])
            time.sleep(0.5)
        yield Head(f"127.0.0.1:{port}", url)
    finally:
        kill_tree(head.pid)
        head.wait()
        log.close()


def small(command: Command, address: str, **sections: Any) -> str:
    """A config whose run takes seconds, into a folder that all nodes (this machine) share."""
    return str(command.config(**{
        "source": {"format": "digits", "subset": {"per_class": 12}}, "prepare": {"resolution": 8},
        "train": {"model": "mlp", "budget": {"kimg": 1}}, "publish": {"url": f"file://{command.folder}/out"},
        "sample": {"target": {"per_class": 20}, "rows_per_shard": 50, "workers": 1},
        "cluster": {"address": address}, **sections,
    }))


def test_a_jobs_url_takes_the_whole_command(command: Command) -> None:
    with ray_head(command) as head:
        config = small(command, head.jobs)
        assert f"takes jobs, Ray {__import__('ray').__version__}" in command.run("doctor", config, timeout_s=PATIENCE_S).out
        token = command.env.pop("RAY_AUTH_TOKEN")
        denied = command.run("run", config, timeout_s=PATIENCE_S)
        assert denied.status == 1 and "the Jobs API does not do as asked" in denied.err and "fault of ganmill" not in denied.err, denied.err
        command.env["RAY_AUTH_TOKEN"] = token
        ended = command.run("run", config, "--json", timeout_s=PATIENCE_S)
        assert ended.status == 0, ended.err
        assert ended.result["status"] == "published" and ended.result["rows"] > 0
        assert [line for line in ended.out.splitlines() if '"stage": "sample"' in line], "its events are heard here"
        assert command.run("verify", f"{command.folder}/out/tiny", "--deep").status == 0
        again = command.run("run", config, "--json", timeout_s=PATIENCE_S)
        assert again.status == 0 and again.result["status"] == "up to date", again.err
        # a refusal there is a refusal here, and one stage is a job too
        refused = command.run("run", small(command, head.jobs, name="worse", gate={"min_coverage": 1.0, "min_lift_pp": None}),
                              timeout_s=PATIENCE_S)
        assert refused.status == 3 and "coverage" in refused.err and "Traceback" not in refused.err, refused.err
        trained = command.run("train", small(command, head.jobs, name="stage"), "--json", timeout_s=PATIENCE_S)
        assert trained.status == 0 and trained.result["trained_kimg"] >= 1, trained.err
        # Ctrl-C here stops the job there, which keeps its checkpoint
        before = set((command.folder / "out/tiny").rglob("checkpoints/*.json"))
        process = command.start("run", small(command, head.jobs, name="stopped", train={
            "model": "dcgan", "budget": {"kimg": 500}, "options": {"width": 8, "checkpoint_every_kimg": 1}}), "--json")
        deadline = time.monotonic() + PATIENCE_S
        while not [f for f in (command.folder / "out/tiny").rglob("checkpoints/*.json") if f not in before]:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1 and "Continue with" in err and "Traceback" not in err, err
        assert all(status in ("SUCCEEDED", "FAILED", "STOPPED") for status in job_statuses(command, head)), "a job goes on"


def job_statuses(command: Command, head: Head) -> list[str]:
    """Of every job that the head has seen."""
    code = (f"from ray.job_submission import JobSubmissionClient as C\n"
            f"print(*[j.status.value for j in C({head.jobs!r}).list_jobs()])")
    done = subprocess.run([sys.executable, "-c", code], env=command.env, cwd=command.folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_deployment_hands_its_run_to_a_jobs_url(command: Command, prefect_server: str) -> None:
    """Prefect here, the work there: the page tells what the job says."""
    watch = Watcher(prefect_server)
    with ray_head(command) as head:
        command.env["PREFECT_API_URL"] = prefect_server      # known here alone, not on the cluster
        deployed = command.run("deploy", small(command, head.jobs), "--json", timeout_s=PATIENCE_S)
        assert deployed.status == 0, deployed.err
        with worker(command, "worker.log"):
            api(prefect_server, f"/deployments/{deployed.result['deployment_id']}/create_flow_run")
            [event] = watch.wait("the version", lambda: watch.events("published"), PATIENCE_S)
            [run] = watch.wait("its end", lambda: [r for r in watch.runs() if r["state_type"] == "COMPLETED"], PATIENCE_S)
        assert len(watch.runs()) == 1 and run["parameters"]["config"]["cluster"]["address"] == head.jobs
        latest = json.loads((command.folder / "out/tiny/LATEST.json").read_text())
        assert event["payload"]["version"] == latest["version"] and event["payload"]["rows"] > 0
        assert "agreement" in watch.logs(), "what the job said is on the page"


def test_the_documented_way_by_hand_works_too(command: Command) -> None:
    """`ray job submit`, word for word as in docs/operations.md."""
    with ray_head(command) as head:
        config = Path(small(command, "auto"))
        shutil.copy(config, command.folder / "my.yaml")
        bin_folder = Path(sys.executable).parent
        done = subprocess.run(
            [str(bin_folder / "ray"), "job", "submit", "--address", head.jobs, "--working-dir", ".", "--", "ganmill", "run", "my.yaml"],
            cwd=folder_with(command, "my.yaml"), env=command.env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        assert "published" in done.stdout and (command.folder / "out/tiny/LATEST.json").exists()


def folder_with(command: Command, name: str) -> Path:
    """A folder that holds this file alone: all of it goes to the cluster."""
    folder = command.folder / "submitted"
    folder.mkdir()
    shutil.copy(command.folder / name, folder / name)
    return folder


def test_another_ganmill_on_the_nodes_is_refused_or_replaced(command: Command) -> None:
    other = command.folder / "other"
    for package in ("gan", "pipeline", "flows"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "pipeline/runs.py").open("a") as runs:
        runs.write("\n# another one\n")
    with ray_head(command, code=other) as head:
        config = small(command, head.gcs)
        refused = command.run("run", config, timeout_s=PATIENCE_S)
        assert refused.status == 1 and "runs ganmill 0.1.0 (code " in refused.err and "ship_code" in refused.err, refused.err
        assert not (command.folder / "out/tiny/LATEST.json").exists()
        shipped = command.run("run", config, "--set", "cluster.ship_code=true", "--json", timeout_s=PATIENCE_S)
        assert shipped.status == 0, shipped.err
        ours = shipped.result["run_id"]
        assert command.run("run", config, "--set", f"cluster.address={head.jobs}", "--set", "cluster.ship_code=true", "--json",
                           timeout_s=PATIENCE_S).result["status"] == "up to date", "the same code there as here"
        theirs = command.run("run", config, "--set", f"cluster.address={head.jobs}", "--json", timeout_s=PATIENCE_S)
        assert theirs.status == 0 and theirs.result["run_id"] != ours, "other code is another run"
        too_much = command.run("run", config, "--set", "cluster.ship_code=true", "--set", "sample.workers=9", "--set", "seed=3",
                               timeout_s=PATIENCE_S)
        assert too_much.status == 1 and "9 CPUs asked for, but its 1 nodes have 2" in too_much.err, too_much.err
