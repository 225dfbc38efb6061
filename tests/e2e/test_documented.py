"""Every command and every piece of code of the documentation: run here word for word, or said why not and by what it is proven.

The pages are read from top to bottom in one world: a folder with images, an S3 server, a Prefect server. To be quick, the
configs get a small training added; the commands stay as they are written, but for PLACEHOLDERS.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import parse_config
from tests.e2e.conftest import Command, free_port
from tests.e2e.nightly import kill_tree
from tests.flows.test_docs import PAGES, commands
from tests.servers import S3Server

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 900
SMALL = {"train": {"model": "mlp", "budget": {"kimg": 2}}, "evaluate": {"samples": 50, "lift": {"seeds": 2, "ratios": [0.5], "steps": 20}},
         "gate": {"enabled": False}, "sample": {"workers": 1}}

# what is not run here: pattern → why, and which test stands for it
ELSEWHERE = {
    r"git clone .*": "needs the network; what follows it is `make run`",
    r"make (run|test|test-all|bench MNIST=FOLDER)": "sets up an environment of its own; `make -n` reads it here, CI runs `make test`",
    r"python benchmarks/.*": "measures for minutes or hours; that it knows these options is asked here",
    r"docker .*|cd deploy && cp env\.example \.env": "no Docker here: deploy/README.md says never run; tests/deploy checks the files",
    r"kubectl .*": "no cluster here: deploy/README.md says never run; tests/deploy checks the files",
    r"prefect worker start --pool ganmill": "the same with --type is run; this one needs the pool of the line before",
    r"ray job submit .*": "tests/e2e/test_submitted_jobs.py::test_the_documented_way_by_hand_works_too",
}
STAYS = ("prefect server start", "prefect worker start")     # programs that go on until they are ended
EVERY = [(page, command) for page in PAGES for command in commands(page)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


class World:
    """Where the reader of the documentation sits."""

    def __init__(self, folder: Path, s3: S3Server) -> None:
        self.command = Command(folder)
        self.folder, self.done = folder, set[str]()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        port = free_port()
        self.env = self.command.env | s3.environment | {
            "PREFECT_SERVER_API_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self.api_url = f"http://127.0.0.1:{port}/api"    # 4200 may be somebody else's here
        for name in ("examples", "deploy"):
            (folder / name).symlink_to(ROOT / name)

    def write_configs(self) -> None:
        """The configs that the pages show, by the name in their first line, with a small training added."""
        for _, block in blocks("yaml"):
            name = re.match(r"# (\S+\.yaml)\n", block)
            if name:
                (self.folder / name.group(1)).write_text(yaml.safe_dump({**yaml.safe_load(block), **SMALL}))

    def run(self, command: str) -> None:
        """As the shell would; what goes on is left running."""
        if command in self.done:
            return
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.env[name] = {"PREFECT_API_URL": self.api_url, "GANMILL_METRICS_PUSHGATEWAY": "http://127.0.0.1:9"}.get(name, value)
        elif command.startswith(STAYS):
            self.stay(command)
        else:
            told = subprocess.run(["bash", "-c", self.filled(command)], cwd=self.folder, env=self.env, capture_output=True, text=True,
                                  timeout=PATIENCE_S, check=False)
            there_already = command.startswith("prefect work-pool create") and "already exists" in told.stdout + told.stderr
            assert told.returncode == 0 or there_already, told.stdout[-2000:] + told.stderr[-3000:]
        self.done.add(command)
        if command.startswith("ganmill init"):
            written = self.folder / "ganmill.yaml"
            written.write_text(yaml.safe_dump({**yaml.safe_load(written.read_text()), **SMALL}))

    def stay(self, command: str) -> None:
        log = (self.folder / f"{len(self.running)}.log").open("wb")
        self.running[command] = subprocess.Popen(command.split(), cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT,
                                                 start_new_session=True)
        if command == "prefect server start":
            deadline = time.monotonic() + 300
            while not self.healthy():
                assert time.monotonic() < deadline and self.running[command].poll() is None, (self.folder / "0.log").read_text()[-2000:]
                time.sleep(0.5)
        else:
            time.sleep(3)
            assert self.running[command].poll() is None, command

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.api_url + "/health", timeout=2):
                return True
        except OSError:
            return False

    def filled(self, command: str) -> str:
        """With the run's id where the pages say RUN."""
        if " RUN" not in command:
            return command
        listed = subprocess.run(["ganmill", "runs", "my.yaml", "--json"], cwd=self.folder, env=self.env, capture_output=True, text=True,
                                check=True, timeout=PATIENCE_S)
        return command.replace(" RUN", f" {yaml.safe_load(listed.stdout.splitlines()[-1])['runs'][0]['run_id']}")

    def end(self) -> None:
        """Everything that was left running, by process id."""
        for process in reversed(self.running.values()):
            kill_tree(process.pid)
            process.wait()


@pytest.fixture(scope="module")
def world(s3_server: S3Server) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="gmw-", ignore_cleanup_errors=True) as folder:
        made = World(Path(folder), s3_server)
        make_bucket(s3_server, "bucket")
        subprocess.run([sys.executable, str(ROOT / "examples/make_damaged_folder.py"), f"{folder}/images", "--damaged", "0",
                        "--per-class", "24", "--ratio", "4"], check=True, timeout=PATIENCE_S)
        made.write_configs()
        try:
            yield made
        finally:
            made.end()


def make_bucket(server: S3Server, name: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=server.url, aws_access_key_id="tester", aws_secret_access_key="canary-secret",
                 region_name="us-east-1").create_bucket(Bucket=name)


def blocks(language: str) -> list[tuple[Path, str]]:
    """(page, content) of every fenced block in a language."""
    return [(page, block) for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def reason(command: str) -> str | None:
    return next((why for pattern, why in ELSEWHERE.items() if re.fullmatch(pattern, command)), None)


@pytest.mark.parametrize(("page", "command"), EVERY, ids=[f"{p.relative_to(ROOT)}: {c}" for p, c in EVERY])
def test_a_documented_command(page: Path, command: str, request: pytest.FixtureRequest) -> None:
    why = reason(command)
    if why is None:
        request.getfixturevalue("world").run(command)
        return
    if command.startswith("make "):
        done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    if command.startswith("python "):
        _, script, *words = command.split()
        told = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert [w for w in words if w.startswith("--") and w not in told] == [] and (not words or words[0][0] == "-" or words[0] in told)
    if "::" in why:
        file, _, name = why.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text() and " ".join(command.split()[-3:]) == "ganmill run my.yaml"
    for file in re.findall(r"(?:-f|--from-env-file|--base-job-template) (deploy/\S+)", command):
        assert (ROOT / file).exists(), file
    if "never run" in why:
        assert page.name == "README.md" and page.parent.name == "deploy" and "**Never run:**" in page.read_text()


PYTHON = [(page, block) for page, block in blocks("python") if page.name != "api.md"]       # signatures there, no programs


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{p.relative_to(ROOT)}: {b.splitlines()[0]}" for p, b in PYTHON])
def test_a_documented_program(page: Path, block: str, world: World) -> None:
    """On what `ganmill demo` leaves in ./out, made small."""
    world.run("ganmill demo --set train.budget.kimg=2 --set train.model=mlp --set evaluate.samples=50 --set evaluate.lift.steps=20 "
              "--set evaluate.lift.seeds=2 --set gate.enabled=false --set sample.workers=1")
    told = subprocess.run([sys.executable, "-c", block], cwd=world.folder, env=world.env, capture_output=True, text=True,
                          timeout=PATIENCE_S, check=False)
    assert told.returncode == 0, told.stderr[-3000:]


YAML: list[Any] = [(page, block) for page, block in blocks("yaml")]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[f"{p.relative_to(ROOT)}: {b.splitlines()[0]}" for p, b in YAML])
def test_a_documented_config(page: Path, block: str) -> None:
    content = yaml.safe_load(block)
    if "source" in content and len(content["source"].get("subset") or {}) > 1:
        pytest.fail("more than one subset")
    parse_config({"name": "x", "source": {"format": "digits"}, **content})
