"""Minutes and commands from `git clone` to the first dataset that a schedule published to an S3 server, as the documentation has it.

    python benchmarks/first_night.py [--repository URL] [--kimg 60]

Clones into a temporary folder, sets up there, and types what README.md and docs/operations.md say, with a schedule that fires
every minute instead of every night. The S3 server (moto) is taken from the clone's own environment and stands for yours, so its
start is not counted. What it starts it ends.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml
from machine import machine
from orchestration import end, free_port

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MIN = 15.0
PATIENCE_S = 1800.0


class Terminal:
    """Types commands into a folder, counts them and says when each was done."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env, self.typed = folder, env, 0
        self.running: list[subprocess.Popen[bytes]] = []
        self.began = time.monotonic()

    def minutes(self) -> float:
        """Since the first command."""
        return (time.monotonic() - self.began) / 60

    def run(self, command: str) -> None:
        """To its end."""
        self._count(command)
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def stay(self, command: str) -> None:
        """In a terminal of its own."""
        self._count(command)
        with (self.folder / f"{self.typed}.log").open("wb") as log:
            self.running.append(subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.env, stdout=log,
                                                 stderr=subprocess.STDOUT, start_new_session=True))

    def end(self) -> None:
        """Ends what stayed, with all below it."""
        for process in reversed(self.running):
            end(process)

    def _count(self, command: str) -> None:
        self.typed += 1
        print(f"{self.minutes():5.1f} min  $ {command}", flush=True)


def answers(url: str) -> bool:
    """Does something answer there?"""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def wait(what: str, found: Callable[[], bool]) -> None:
    """Until `found()`."""
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(1)


def store(python: Path, env: dict[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    """An S3 server with an empty bucket `sets`."""
    port = env["AWS_ENDPOINT_URL"].rpartition(":")[2]
    server = subprocess.Popen([str(python), "-c", "import sys; from moto.server import main; main(sys.argv[1:])", "-H", "127.0.0.1",
                               "-p", port], env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait("the S3 server", lambda: answers(env["AWS_ENDPOINT_URL"]))
    subprocess.run([str(python), "-c", "import fsspec; fsspec.filesystem('s3').mkdir('sets')"], env=env, check=True)
    return server


def published(terminal: Terminal) -> bool:
    """Has the schedule published?"""
    code = "import fsspec, sys; sys.exit(not fsspec.filesystem('s3').exists('sets/first/digits/LATEST.json'))"
    return subprocess.run(["python", "-c", code], env=terminal.env, check=False).returncode == 0


def main() -> None:
    """Prints each command with its time, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", default=str(ROOT))
    parser.add_argument("--kimg", type=float, default=60)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="gmb-") as name:
        folder = Path(name)
        api_port, s3_port = free_port(), free_port()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "AWS", "GANMILL", "PYTHONPATH"))} | {
            "PATH": f"{folder}/ganmill/.venv/bin:{os.environ['PATH']}", "PREFECT_HOME": f"{folder}/prefect", "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_API_PORT": str(api_port),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1"}
        terminal, server = Terminal(folder, env), None
        try:
            terminal.run(f"git clone --quiet {arguments.repository} ganmill")
            terminal.run(f"make -C ganmill PYTHON={sys.executable}")
            server = store(folder / "ganmill/.venv/bin/python", env, folder)
            (folder / "my.yaml").write_text(yaml.safe_dump({
                "name": "digits", "source": {"format": "digits", "subset": {"longtail": {"head": 120, "ratio": 10}}},
                "train": {"budget": {"kimg": arguments.kimg}}, "gate": {"min_lift_pp": -10.0}, "publish": {"url": "s3://sets/first"}}))
            terminal.stay("prefect server start")
            url = f"http://127.0.0.1:{api_port}/api"
            wait("the Prefect server", lambda: answers(f"{url}/health"))
            env["PREFECT_API_URL"] = url
            terminal.typed += 1                       # the export
            terminal.stay("prefect worker start --pool ganmill --type process")
            terminal.run('ganmill deploy my.yaml --schedule "* * * * *"')
            wait("the first version", lambda: published(terminal))
            minutes = terminal.minutes()
            told = subprocess.run(["ganmill", "verify", "s3://sets/first/digits", "--deep", "--json"], env=env, cwd=folder, check=True,
                                  capture_output=True, text=True)
            rows = json.loads(told.stdout.splitlines()[-1]).get("rows")
            print(f"{minutes:5.1f} min  {rows} rows are published and verified (limit {LIMIT_MIN:.0f} min), {terminal.typed} commands and "
                  "one config")
        finally:
            terminal.end()
            if server is not None:
                server.terminate()
                server.wait()


if __name__ == "__main__":
    main()
