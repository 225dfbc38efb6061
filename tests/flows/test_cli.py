"""The command line without a run: usage, refusals before any work, exit statuses."""

import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from pipeline.runs import code_digest


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def config_file(folder: Path, **sections: Any) -> str:
    content = {"name": "digits", "source": {"format": "digits", "subset": {"longtail": {"head": 60, "ratio": 5}}},
               "publish": {"url": str(folder / "out")}, "sample": {"workers": 1}, **sections}
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, flows.cli; print([m for m in ('torch','ray','prefect','pyarrow','pydantic','numpy','sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    text = invoke("--help").output
    for command in ("run", "validate", "train", "evaluate", "sample", "report", "show", "verify", "demo", "init", "doctor", "deploy",
                    "runs", "status"):
        assert command in text
    assert not [line for line in text.partition("Commands:")[2].splitlines() if line.endswith("...")], "a command's line is cut short"


def test_the_version_is_the_package_s_and_says_which_code() -> None:
    root = Path(__file__).resolve().parents[2]
    stated = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert invoke("--version").output == f"ganmill {stated} (code {code_digest()})\n"


@pytest.mark.parametrize("command", ["run", "train"])
def test_an_address_that_is_none_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(command, config_file(tmp_path, cluster={"address": "htp://10.0.0.5:8265"}))
    assert result.exit_code == 2 and "Jobs URL" in result.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("sections", "words"), [
    ({"trian": {}}, "trian: unknown key"),
    ({"train": {"workers": 512, "batch_size": 1024}}, "train.workers: 512 workers, but this machine has"),
    ({"sample": {"workers": 500}}, "sample.workers: 500 workers, but this machine has"),
    ({"train": {"gpus_per_worker": 64}}, "train.gpus_per_worker"),
    ({"sample": {"target": {"per_class": 0}}}, "0 images"),
    ({"sample": {"target": {"eleven": 5}}}, "no class named 'eleven'"),
    ({"source": {"format": "digits", "subset": {"per_class": 40}}}, "all classes are equally large already"),
    ({"source": {"format": "idx", "url": "/nowhere/at/all"}}, "/nowhere/at/all"),
    ({"source": {"format": "imagefolder", "url": "http://127.0.0.1:9/x"}}, "127.0.0.1:9"),
    ({"cluster": {"address": "127.0.0.1"}}, "cluster.address"),
])
def test_what_can_t_work_is_refused_before_any_work(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    config = config_file(tmp_path, **sections)
    began = time.monotonic()
    for arguments in (["validate", config], ["run", config, "--dry-run"]):
        result = invoke(*arguments)
        assert result.exit_code in (1, 2), result.output
        assert words in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - began < 60


def test_validate_prints_config_and_plan_and_writes_nothing(tmp_path: Path) -> None:
    config = config_file(tmp_path, seed=7)
    result = invoke("validate", config)
    assert result.exit_code == 0, result.output
    assert "seed: 7" in result.output and "shard" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]
    plan = json.loads(invoke("validate", config, "--json").stdout.strip().splitlines()[-1])
    assert plan["event"] == "result" and plan["rows"] == sum(plan["rows_per_class"].values())


def test_overrides_reach_the_config(tmp_path: Path) -> None:
    result = invoke("validate", config_file(tmp_path), "--set", "train.budget.kimg=5", "--set", "seed=9")
    assert "kimg: 5" in result.output and "seed: 9" in result.output
    assert invoke("validate", config_file(tmp_path), "--set", "nonsense").exit_code == 2


def test_a_stage_without_its_forerunner_says_which_comes_first(tmp_path: Path) -> None:
    for stage in ("evaluate", "sample", "report"):
        result = invoke(stage, config_file(tmp_path), "--run-id", "fresh")
        assert result.exit_code == 1 and "ganmill train" in result.output, result.output
    assert invoke("sample", config_file(tmp_path), "--run-id", "../up").exit_code == 2
