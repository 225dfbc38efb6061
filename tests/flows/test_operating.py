"""The operator's commands, without a server: what they refuse, guess, write and tell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from pipeline import guess
from pipeline.config import load_config


def invoke(*arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(app, list(arguments), **more)


def images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (28, 28), mode: str = "L") -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = size if mode == "L" else (*size, 3)
            Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8), mode).save(folder / name / f"{i}.png")
    return folder


# init


@pytest.mark.parametrize(("counts", "size", "mode", "expected"), [
    ({"cat": 20, "dog": 5}, (28, 28), "L", {"resolution": 32, "channels": "grey", "target": {"per_class": 400}}),
    ({"cat": 6, "dog": 6}, (60, 80), "RGB", {"resolution": 64, "channels": "rgb", "target": {"per_class": 120}}),
    ({"cat": 6, "dog": 9, "rare": 2}, (200, 200), "L", {"resolution": 64, "channels": "grey", "target": {"per_class": 180}}),
])
def test_init_writes_a_config_that_fits(
    tmp_path: Path, counts: dict[str, int], size: tuple[int, int], mode: str, expected: dict[str, Any]
) -> None:
    source, out = images(tmp_path / "My Pets", counts, size, mode), tmp_path / "c.yaml"
    result = invoke("init", str(source), "--yes", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["format"] == "imagefolder" and told["rows_per_class"] == counts
    config = load_config(out)
    assert config.name == "my-pets" and config.source.url == str(source)
    assert config.prepare.resolution == expected["resolution"] and config.prepare.channels == expected["channels"]
    assert config.sample.target == expected["target"]
    assert config.evaluate.lift is not None and (config.evaluate.lift.ratios, config.evaluate.lift.seeds) == ([1.0, 2.0], 6)
    kept = [name for name, n in counts.items() if n >= 3]
    assert (config.source.subset.classes if config.source.subset else list(counts)) == kept
    assert out.read_text().count("#") > 8, "a commented config"
    checked = invoke("validate", str(out))
    assert checked.exit_code == 0, checked.output


def test_init_asks_more_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = images(tmp_path / "pets", {"cat": 5, "dog": 5}, (32, 32), "RGB")
    for gpus, kimg in ((0, 200), (2, 1000)):
        monkeypatch.setattr("pipeline.cluster.local_gpus", lambda gpus=gpus: gpus)
        out = tmp_path / f"{gpus}.yaml"
        assert invoke("init", str(source), "--yes", "--out", str(out)).exit_code == 0
        train = load_config(out).train
        assert (train.budget.kimg, train.gpus_per_worker) == (kimg, min(gpus, 1))


@pytest.mark.parametrize(("counts", "mode", "asked"), [
    ({"cat": 60, "dog": 60}, "L", {"min_nearest_distance": 0.03}),
    ({"cat": 20, "dog": 20}, "L", {}),                       # too few in val to say what is a copy
    ({"cat": 120}, "L", {}),                                 # a single class has no classifier to measure by
    ({"cat": 100, "dog": 30}, "L", {"min_nearest_distance": 0.03, "min_confidence": 0.97}),
    ({"cat": 90, "dog": 30}, "L", {"min_nearest_distance": 0.03}),
    ({"cat": 100, "dog": 30}, "RGB", {"min_nearest_distance": 0.03}),
])
def test_init_has_near_copies_of_few_images_drawn_again(
    tmp_path: Path, counts: dict[str, int], mode: str, asked: dict[str, float]
) -> None:
    """And in uneven sets of glyphs what may pass for another class."""
    source, out = images(tmp_path / "pets", counts, (8, 8), mode), tmp_path / "c.yaml"
    assert invoke("init", str(source), "--yes", "--out", str(out)).exit_code == 0
    assert load_config(out).sample.filter == asked


@pytest.mark.parametrize(("counts", "asked"), [
    ({"cat": 12, "dog": 12}, 0.3), ({"cat": 60, "dog": 24, "rare": 4}, 0.3), ({"cat": 60, "dog": 25, "rare": 4}, 0.5),
])
def test_init_asks_for_less_coverage_of_a_handful(tmp_path: Path, counts: dict[str, int], asked: float) -> None:
    source, out = images(tmp_path / "pets", counts, (8, 8)), tmp_path / "c.yaml"
    assert invoke("init", str(source), "--yes", "--out", str(out)).exit_code == 0
    assert load_config(out).gate.min_coverage == asked


@pytest.mark.parametrize(("largest", "smallest", "classes", "target"), [
    (50, 5, 10, {"per_class": 1000}),                        # twenty times as many
    (1500, 15, 10, {"per_class": 2000}),                     # 20,000 in all
    (4000, 40, 10, "balance"),                               # there are many already
    (4000, 4000, 10, {"per_class": 4000}),
    (500, 100, 100, "balance"),
])
def test_init_makes_many_images_of_few(largest: int, smallest: int, classes: int, target: str | dict[str, int]) -> None:
    assert guess._target(largest, smallest, classes) == target


def test_init_asks_what_it_can_t_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.starting

    monkeypatch.setattr(flows.starting.sys, "stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)})())
    answers = {"name": "pets", "resolution": "16", "channels": "grey", "publish": "s3://bucket/sets"}
    out = tmp_path / "c.yaml"
    flows.starting.init(
        str(images(tmp_path / "x", {"a": 4, "b": 5})), out, source_format=None, publish=None, yes=False, force=False,
        ask=lambda question, proposed: answers[question.split()[0].rstrip(":")],
    )
    config = load_config(out)
    assert (config.name, config.prepare.resolution, config.publish.url) == ("pets", 16, "s3://bucket/sets")


def test_init_refuses_what_it_can_t_read_and_keeps_what_is_there(tmp_path: Path) -> None:
    flat = images(tmp_path / "flat", {"": 3})
    assert "one folder a class" in invoke("init", str(flat), "--yes", "--out", str(tmp_path / "c.yaml")).output
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("x")
    assert "1 .txt" in invoke("init", str(tmp_path / "notes"), "--yes", "--out", str(tmp_path / "c.yaml")).output
    assert not (tmp_path / "c.yaml").exists()
    (tmp_path / "c.yaml").write_text("mine")
    result = invoke("init", "digits", "--yes", "--out", str(tmp_path / "c.yaml"))
    assert result.exit_code == 2 and "--force" in result.output and (tmp_path / "c.yaml").read_text() == "mine"
    assert "--yes" in invoke("init", "digits", "--out", str(tmp_path / "d.yaml"), input="").output
    assert invoke("init", "digits", "--yes", "--out", str(tmp_path / "e.yaml")).exit_code == 0
    assert "ratios: [0.5, 1.0]" in (tmp_path / "e.yaml").read_text()


@pytest.mark.parametrize(("names", "expected"), [
    (["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"], "idx"), (["data/train-0.parquet"], "parquet"),
    (["shard-000.tar"], "webdataset"), (["a/1.JPG", "b/2.png", "README.md"], "imagefolder"),
])
def test_formats_are_told_by_names(names: list[str], expected: str) -> None:
    from pipeline.guess import guess_format

    assert guess_format(names, "x") == expected


# deploy


def config_file(folder: Path, **sections: Any) -> str:
    content = {"name": "digits", "source": {"format": "digits", "subset": {"longtail": {"head": 60, "ratio": 5}}},
               "publish": {"url": "./out"}, "sample": {"workers": 1}, **sections}
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "c.yaml")


@pytest.mark.parametrize(("options", "sections", "words"), [
    (["--schedule", "0 25 * * *"], {}, "--schedule"), (["--schedule", "daily"], {}, "every 15m"),
    (["--schedule", "0 2 * * *", "--timezone", "Berlin"], {}, "Europe/Berlin"), (["--timezone", "UTC"], {}, "without --schedule"),
    ([], {"publish": {"url": "s3://b/x", "storage_options": {"secret": "abc"}}}, "publish.storage_options.secret"),
    ([], {"source": {"format": "parquet", "url": "https://me:pw@host/a.parquet"}}, "source.url"),
    ([], {"train": {"workers": "${WORKERS}"}}, "${NAME} can only stand for text"), ([], {"trian": {}}, "trian: unknown key"),
    (["--schedule", "0 2 * * *"], {}, "PREFECT_API_URL"),
])
def test_deploy_refuses_before_it_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sections: dict[str, Any], words: str
) -> None:
    import prefect.settings

    with prefect.settings.temporary_settings(restore_defaults={prefect.settings.PREFECT_API_URL}):
        result = invoke("deploy", config_file(tmp_path, **sections), *options)
    assert result.exit_code in (1, 2) and words in result.output, result.output
    assert "Traceback" not in result.output and "abc" not in result.output and "pw@" not in result.output


def test_what_a_worker_elsewhere_can_t_reach_is_made_absolute_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.deployment import _refuse_local_paths, _with_absolute_paths
    from pipeline.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    raw = {"source": {"url": "./images"}, "publish": {"url": "${PLACE}/x"}}
    assert _with_absolute_paths(raw) == {"source": {"url": f"{tmp_path}/images"}, "publish": {"url": "${PLACE}/x"}}
    assert _with_absolute_paths({"source": {"format": "digits"}})["publish"]["url"] == f"{tmp_path}/out"
    with pytest.raises(ConfigError, match="images lies on this machine"):
        _refuse_local_paths(raw, "k8s", "kubernetes")
    _refuse_local_paths({"source": {"url": "s3://b/x"}, "publish": {"url": "s3://b/y"}}, "k8s", "kubernetes")


def test_the_flows_schema_takes_good_configs_and_refuses_bad_ones() -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools import validate

    from flows.augment import augment

    schema = parameter_schema(augment).model_dump_for_openapi()
    good: dict[str, Any] = {"name": "x", "source": {"format": "digits"}}
    validate({"config": good}, schema, raise_on_error=True)
    for bad in ({"nmae": "x"}, {"train": {"workers": 0}}, {"prepare": {"resolution": 30}}, {"source": {"format": "zip"}}):
        with pytest.raises(Exception, match=r"[Vv]alid"):
            validate({"config": {**good, **bad}}, schema, raise_on_error=True)


# runs and status


def test_runs_and_status_tell_what_the_folders_hold(tmp_path: Path) -> None:
    from pipeline.store import Store

    dataset = Store(str(tmp_path / "out/digits"))
    begun = {"config": {"train": {"budget": {"kimg": 50}}}}
    dataset.put_json("runs/aaa/config.json", begun)
    dataset.put_json("runs/aaa/snapshot.json", {})
    dataset.put("runs/aaa/metrics.jsonl", b'{"kimg": 1}\n{"kimg": 12.5}\n')
    for key, value in {"config": begun, "snapshot": {}, "checkpoint": {}, "scorecard": {}, "verdict": {
            "passed": False, "enforced": True, "reasons": ["coverage 0.2 is below 0.5."]}}.items():
        dataset.put_json(f"runs/bbb/{key}.json", value)
    result = invoke("runs", str(tmp_path / "out/digits"), "--json")
    assert result.exit_code == 0, result.output
    told = {r["run_id"]: r for r in json.loads(result.stdout.splitlines()[-1])["runs"]}
    assert (told["aaa"]["state"], told["aaa"]["stage"], told["aaa"]["progress"]) == ("unfinished", "train", "12.5 of 50 kimg")
    assert (told["bbb"]["state"], told["bbb"]["stage"]) == ("refused", "gate")
    assert told["aaa"]["begun"] and told["bbb"]["last_sign"] >= told["aaa"]["last_sign"]
    assert "coverage 0.2" in invoke("status", "bbb", "--in", config_file(tmp_path, publish={"url": str(tmp_path / "out")})).output
    assert "12.5 of 50 kimg" in invoke("status", str(tmp_path / "out/digits/runs/aaa")).output
    for arguments in (["status", "ccc", "--in", str(tmp_path / "out/digits")], ["runs", str(tmp_path / "nowhere")]):
        missing = invoke(*arguments)
        assert missing.exit_code == 1 and "Traceback" not in missing.output
    assert invoke("status", "a/b").exit_code == 2


# doctor


def test_the_doctor_names_each_fault_with_a_remedy(tmp_path: Path) -> None:
    config = config_file(tmp_path, source={"format": "imagefolder", "url": str(tmp_path / "gone")}, publish={"url": "/proc/nowhere"})
    result = invoke("doctor", config, "--json")
    assert result.exit_code == 1
    checks = {c["what"]: c for c in json.loads(result.stdout.splitlines()[-1])["checks"]}
    assert checks["source"]["state"] == checks["store"]["state"] == "fault"
    assert "gone" in checks["source"]["found"] and "/proc/nowhere" in checks["store"]["found"]
    assert checks["python"]["state"] == checks["packages"]["state"] == "ok"


def test_the_doctor_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    result = invoke("doctor", config_file(tmp_path, publish={"url": str(tmp_path / "out")}))
    assert result.exit_code == 0, result.output
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
    assert "conditional puts held" in result.output
