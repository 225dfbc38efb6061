"""What Prefect costs: seconds from a firing to "up to date", its share of a run that does something, task runs for 1,000 shards.

    python benchmarks/orchestration.py [--firings 5] [--kimg 60]

Starts a Prefect server (SQLite) and a process worker of its own on free ports, and ends them.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from machine import machine

CONFIG = {
    "name": "digits", "source": {"format": "digits", "subset": {"longtail": {"head": 120, "ratio": 10}}},
    "evaluate": {"samples": 1000, "lift": None}, "gate": {"enabled": False}, "sample": {"workers": 1, "rows_per_shard": 250},
}


THOUSAND_SHARDS = {
    **CONFIG, "name": "thousand", "prepare": {"resolution": 8}, "train": {"model": "mlp", "budget": {"kimg": 1}},
    "sample": {"workers": 1, "target": {"total": 1000}, "rows_per_shard": 1},
}
FIVE_MINUTES_S = 300


def api(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """A POST to Prefect's API."""
    request = urllib.request.Request(url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


def start(arguments: list[str], env: dict[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    """A part of Prefect in a process group of its own."""
    log = (folder / f"{arguments[0]}.log").open("wb")
    return subprocess.Popen([sys.executable, "-m", "prefect", *arguments], env=env, cwd=folder, stdout=log,
                            stderr=subprocess.STDOUT, start_new_session=True)


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def end(part: "subprocess.Popen[bytes]") -> None:
    """Ends a process and its group: asked first, killed where it does not listen (a worker whose SIGINT is ignored never does)."""
    os.killpg(part.pid, signal.SIGTERM)
    try:
        part.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(part.pid, signal.SIGKILL)
        part.wait()


def fire(url: str, deployment_id: str) -> dict[str, Any]:
    """A run of the deployment, to its end."""
    run = api(url, f"/deployments/{deployment_id}/create_flow_run")
    while True:
        [now] = api(url, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            if now["state_type"] != "COMPLETED":
                raise SystemExit(f"the run ended {now['state_type']}: {now['state']['message']}")
            return dict(now)
        time.sleep(0.2)


def seconds(run: dict[str, Any]) -> float:
    """From the firing to the end."""
    return (datetime.fromisoformat(run["end_time"]) - datetime.fromisoformat(run["expected_start_time"])).total_seconds()


def main() -> None:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--firings", type=int, default=5)
    parser.add_argument("--kimg", type=float, default=60)
    arguments = parser.parse_args()
    print(machine())
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    with tempfile.TemporaryDirectory(prefix="gmb-") as name:
        folder = Path(name)
        env = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": url, "DO_NOT_TRACK": "1",
               "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        (folder / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "train": {"budget": {"kimg": arguments.kimg}}}))
        (folder / "thousand.yaml").write_text(yaml.safe_dump(THOUSAND_SHARDS))
        parts = [start(["server", "start", "--host", "127.0.0.1", "--port", str(port)], env, folder)]
        try:
            while not answers(url):
                time.sleep(0.5)
            deploy("c.yaml", env, folder)            # makes the pool
            parts.append(start(["worker", "start", "--pool", "ganmill", "--type", "process"], env, folder))
            measure(url, env, folder, arguments.firings)
            count_task_runs(url, env, folder)
        finally:
            for part in reversed(parts):
                end(part)


def answers(url: str) -> bool:
    """Is the server up?"""
    try:
        with urllib.request.urlopen(url + "/health", timeout=2):
            return True
    except OSError:
        return False


GANMILL = [sys.executable, "-m", "flows.cli"]


def deploy(config: str, env: dict[str, str], folder: Path) -> str:
    """The deployment's id."""
    told = subprocess.run([*GANMILL, "deploy", config, "--json"], env=env, cwd=folder, check=True, capture_output=True, text=True)
    return str(json.loads(told.stdout.splitlines()[-1])["deployment_id"])


def count_task_runs(url: str, env: dict[str, str], folder: Path) -> None:
    """A run of 1,000 shards."""
    run = fire(url, deploy("thousand.yaml", env, folder))
    tasks = api(url, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    shards = len(list((folder / "out/thousand/runs").glob("*/receipts/*.json")))
    print(f"a run of {shards:,} shards: {len(tasks)} task runs (limit 60), {seconds(run):.0f} s")


def measure(url: str, env: dict[str, str], folder: Path, firings: int) -> None:
    """Fires once for a version, then for nothing; and the same run without a server."""
    deployment = deploy("c.yaml", env, folder)
    first = seconds(fire(url, deployment))
    idle = [seconds(fire(url, deployment)) for _ in range(firings)]
    bare = {k: v for k, v in env.items() if k != "PREFECT_API_URL"}
    began = time.perf_counter()
    command = [*GANMILL, "run", "c.yaml", "--set", f"publish.url={folder}/bare"]
    subprocess.run(command, env=bare, cwd=folder, check=True, capture_output=True)
    alone = time.perf_counter() - began
    print(f'firing to "up to date": median {statistics.median(idle):.1f} s, slowest {max(idle):.1f} s of {firings} (limit 15)')
    print(f"a run that publishes: {first:.0f} s from its firing under a server and worker, {alone:.0f} s as `ganmill run` without; "
          f"the difference is {100 * (first - alone) / FIVE_MINUTES_S:.1f} % of five minutes (limit 5)")


if __name__ == "__main__":
    main()
