"""The command as its user starts it: a process of its own, with nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

TINY: dict[str, Any] = {
    "name": "tiny",
    "source": {"format": "digits", "subset": {"longtail": {"head": 40, "ratio": 4}}},
    "prepare": {"resolution": 16},
    "train": {"model": "dcgan", "budget": {"kimg": 3}, "options": {"width": 8}},
    "evaluate": {"samples": 100, "lift": None},
    "gate": {"enabled": False},
    "sample": {"rows_per_shard": 50, "workers": 1},
}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The last JSON line of `--json`."""
        return dict(json.loads(self.out.strip().splitlines()[-1]))


class Command:
    """`ganmill` in a folder of its own, with temporary files and Prefect's home there too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temp = folder / "tmp"
        self.temp.mkdir()
        self.env = {
            **os.environ, "TMPDIR": str(self.temp), "PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.env.pop("PREFECT_API_URL", None)

    def config(self, name: str = "config.yaml", **sections: Any) -> Path:
        """A YAML file: the tiny run with `sections` in place of its own."""
        file = self.folder / name
        content = {**TINY, "publish": {"url": str(self.folder / "out")}, **sections}
        file.write_text(yaml.safe_dump(content))
        return file

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts the command in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments], cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )

    def run(self, *arguments: str, timeout_s: float = 240) -> Ended:
        """Runs the command to its end."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{arguments} still ran after {timeout_s} s\n{out[-2000:]}\n{err[-4000:]}")
        return Ended(process.returncode, out, err)

    def left_processes(self) -> list[str]:
        """Command lines of processes that this folder's commands left running."""
        left = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            try:
                if process.pid != os.getpid() and process.environ().get("TMPDIR") == str(self.temp):
                    left.append(" ".join(process.info["cmdline"] or [])[:200])
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return left


@pytest.fixture
def command() -> Iterator[Command]:
    """A fresh folder with the command in it; whatever it left running fails the test and is ended by process id."""
    folder = Path(tempfile.mkdtemp(prefix="gme-"))   # short: Ray's socket paths end at 107 bytes
    yield Command(folder)
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A loopback port that nothing listens on at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def serving(command: Command, **database: str) -> Iterator[str]:
    """A real Prefect server on SQLite, or on the database that the environment names; its API's URL. Ended by process id."""
    url = f"http://127.0.0.1:{free_port()}/api"
    env = {**command.env, "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **database}
    log = (command.folder / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", url.split(":")[2].split("/")[0]],
        env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300            # a loaded machine may take minutes to start it
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health", timeout=2):
                break
            if time.monotonic() > deadline or server.poll() is not None:
                pytest.fail((command.folder / "server.log").read_text()[-2000:])
            time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


@pytest.fixture
def prefect_server(command: Command) -> Iterator[str]:
    """A real Prefect server on SQLite; its API's URL."""
    with serving(command) as url:
        yield url


def api(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """A POST to Prefect's API; asked again, as its own clients do, while the server is too busy to take it."""
    deadline = time.monotonic() + 120
    while True:
        request = urllib.request.Request(
            url + path, data=json.dumps(body or {}).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as e:
            if e.code not in (429, 503) or time.monotonic() > deadline:
                raise
        time.sleep(1)
