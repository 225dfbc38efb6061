"""A night in small: a worker, the images that it works on, and what the Prefect server has seen of it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.e2e.conftest import Command, api


def impatient(command: Command) -> Command:
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
