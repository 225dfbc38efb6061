"""Every command in the documentation is either executed here, word for word, or stands in the list of those that can't be."""

import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import Command, api
from tests.flows.test_docs import PAGES, commands
from tests.servers import S3Server

ROOT = Path(__file__).resolve().parent.parent.parent
# The order is that of a user who follows README and docs/operations.md; RUN is taken from the run before.
STORY = [
    "ganmill doctor my.yaml", "ganmill validate my.yaml", "ganmill run my.yaml", "ganmill show s3://bucket/sets/defects",
    "ganmill verify s3://bucket/sets/defects --deep", "ganmill runs my.yaml", "ganmill status RUN --in my.yaml",
    'ganmill deploy my.yaml --schedule "0 2 * * *" --timezone Europe/Berlin', "python examples/train_when_published.py",
    "prefect work-pool create ganmill-kubernetes --type kubernetes --base-job-template deploy/kubernetes/work-pool.json",
    "prefect --no-prompt deploy --prefect-file deploy/prefect.yaml --name nightly",
    "prefect --no-prompt deploy --prefect-file deploy/prefect.yaml --name nightly-kubernetes",
]
ELSEWHERE = {                                        # beginning of the command → where it is executed, or why nowhere
    "git clone": "no network", "make": "the tests themselves", "docker": "no Docker", "cd deploy && cp env.example": "no Docker",
    "kubectl": "no cluster", "prefect server start": "the fixture does it", "export PREFECT_API_URL": "the fixture does it",
    "prefect worker start": "test_schedule.py", "prefect work-pool create ganmill --type process": "ganmill deploy made it",
    "ganmill init": "tests/flows/test_operating.py", "ganmill demo": "the longest test of make test-all",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_every_documented_command_is_executed_or_excused() -> None:
    documented = {line for page in PAGES for line in commands(page)}
    for line in documented:
        assert line in STORY or any(line.startswith(start) for start in ELSEWHERE), f"neither executed nor excused: {line}"
    assert [line for line in STORY if line not in documented] == []


def readme_config() -> str:
    """The YAML of the README's first example, word for word, and what makes it small."""
    [text] = re.findall(r"```yaml\n(# my\.yaml\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    small = "train: {model: mlp, budget: {kimg: 0.3}}\nevaluate: {samples: 20, lift: null}\ngate: {enabled: false}\nsample: {workers: 1}\n"
    return str(text) + small


def test_the_documented_commands_work(command: Command, prefect_server: str, s3_server: S3Server) -> None:
    request = urllib.request.Request(f"{s3_server.url}/bucket", method="PUT", headers={
        "Authorization": "AWS4-HMAC-SHA256 Credential=tester/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"})
    with urllib.request.urlopen(request, timeout=10):
        pass
    rng = np.random.default_rng(0)
    for name, count in {"crack": 12, "scratch": 24}.items():
        (command.folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(command.folder / "images" / name / f"{i}.png")
    (command.folder / "my.yaml").write_text(readme_config())
    binaries = Path(sys.executable).parent
    command.env |= {"PREFECT_API_URL": prefect_server, "PATH": f"{binaries}:{command.env['PATH']}", "OMP_NUM_THREADS": "1",
                    **s3_server.environment}
    run_id = ""
    for line in STORY:
        words = shlex.split(line.replace("RUN", run_id))
        where = ROOT if any((ROOT / w).exists() and "/" in w for w in words) else command.folder
        ended = subprocess.run(words, cwd=where, env=command.env, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, (line, ended.stdout[-2000:], ended.stderr[-4000:])
        if line == "ganmill runs my.yaml":
            run_id = ended.stdout.splitlines()[1].split()[0]
    kept: dict[str, Any] = {d["name"]: d for d in api(prefect_server, "/deployments/filter")}
    assert {"defects", "on-publish", "nightly", "nightly-kubernetes"} <= set(kept)
    for name in ("nightly", "nightly-kubernetes"):
        assert [s["active"] for s in kept[name]["schedules"]] == [False]
        assert kept[name]["global_concurrency_limit"]["limit"] == 1
        assert kept[name]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert kept[name]["parameter_openapi_schema"]["definitions"]["Config"]["properties"]["train"]
    assert kept["nightly-kubernetes"]["job_variables"]["gpus"] == 1
