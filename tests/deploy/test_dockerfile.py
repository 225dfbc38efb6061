"""The Dockerfile: linted, non-root, and made of what the lock file pins. Not built here: there is no Docker."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT, dockerfile, pins

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HADOLINT), "-"], input=text, capture_output=True, text=True, check=False)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing_and_finds_a_planted_fault() -> None:
    clean = lint(dockerfile())
    assert clean.returncode == 0, clean.stdout
    assert lint(dockerfile() + "RUN sudo pip install torch\n").returncode == 1


def stages() -> dict[str, list[str]]:
    """Target → its lines."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in dockerfile().splitlines():
        match = re.match(r"FROM \S+ AS (\S+)", line)
        if match:
            name = match.group(1)
            found[name] = [line]
        elif name:
            found[name].append(line)
    return found


def test_the_two_targets_run_as_nobody_special() -> None:
    made = stages()
    assert {"cpu", "cuda"} <= set(made)
    for target in ("cpu", "cuda"):
        assert made[target][0] == f"FROM base AS {target}"
        assert not [line for line in made[target] if line.startswith(("USER", "ENTRYPOINT"))]
    users = [line for line in made["base"] if line.startswith("USER")]
    assert users == ["USER 1000:1000"]


def test_every_install_is_pinned_and_torch_for_cpus_comes_without_cuda() -> None:
    installs = [line for line in dockerfile().replace("\\\n", " ").splitlines() if "pip install" in line]
    for command in (c for line in installs for c in line.removeprefix("RUN ").split("&&") if "pip install" in c):
        assert re.search(r"--constraint requirements\.lock|-r build\.txt|\^torch==|--no-deps --no-build-isolation \.", command), command
    assert "download.pytorch.org/whl/cpu" in " ".join(stages()["build-cpu"])
    assert "download.pytorch.org" not in " ".join(stages()["build-cuda"])
    assert {"torch", "ray", "prefect", "setuptools", "wheel"} <= set(pins())


def test_the_python_is_one_that_ganmill_runs_on() -> None:
    from packaging.specifiers import SpecifierSet

    [version] = re.findall(r"python:(\d+\.\d+\.\d+)-slim", dockerfile())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert SpecifierSet(wanted).contains(version)
    assert version.rpartition(".")[0] in (DEPLOY / "kubernetes/prefect-worker.yaml").read_text()


def test_the_list_of_what_runs_is_the_projects_and_every_name_is_pinned(tmp_path: Path) -> None:
    """The very command of the image, run here."""
    [script] = re.findall(r'RUN python -c "(.*)" > runtime\.txt', dockerfile())
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert out.splitlines() == [*project["dependencies"], *project["optional-dependencies"]["s3"]]
    for line in out.splitlines():
        assert re.split(r"[\[<>=]", line)[0].lower() in pins(), line


def test_everything_that_is_copied_exists_and_reaches_the_build() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for line in dockerfile().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists() and f"!{source}" in ignored, source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"{p.rstrip('*')}" for p in packages} <= {line.lstrip("!") for line in ignored}


def test_every_environment_name_is_read_by_someone() -> None:
    from tests.deploy.test_compose import prefect_setting_names

    names = re.findall(r"^(?:ENV|   ) +([A-Z_]+)=", dockerfile(), re.MULTILINE)
    code = "".join(f.read_text() for folder in ("flows", "pipeline") for f in (ROOT / folder).rglob("*.py"))
    for name in names:
        if name.startswith("GANMILL_"):
            assert f'"{name}"' in code, f"no code reads {name}"
        elif name.startswith("PREFECT_") and not name.startswith("PREFECT_LOGGING_HANDLERS"):
            assert name in prefect_setting_names(), name
