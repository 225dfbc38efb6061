"""Points on the plane through every stage: what is published, what is reported, what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flows.inspection import show_dataset, validate_config, verify_dataset
from flows.single import run_stage
from gan.mixtures import MIXTURES
from gan.plane import MixtureRecipe, train_mixture
from pipeline import keys, runs
from pipeline.config import Config, parse_config
from pipeline.documents.charts import plane
from pipeline.errors import ConfigError, CorruptShard, GateRefused, RunMismatch
from pipeline.plane import walk
from pipeline.plane.density import contours, levels_of, smoothed
from pipeline.plane.report import render
from pipeline.plane.scorecard import decide, measure
from pipeline.progress import NullProgress
from pipeline.records import Checkpoint

TINY: dict[str, Any] = {
    "name": "plane", "source": {"format": "gaussians", "variant": "two"},
    "train": {"budget": {"kimg": 6}, "options": {"runs": 2, "width": 16, "depth": 2, "batch_size": 64}},
    "evaluate": {"samples": 500}, "gate": {"enabled": False}, "sample": {"target": {"total": 120}, "rows_per_shard": 50},
}


def config(folder: Path, **sections: Any) -> Config:
    return parse_config({**TINY, "publish": {"url": str(folder / "out")}, **sections})


def published(settings: Config) -> dict[str, Any]:
    """Every stage's command, one after the other; the last one's result."""
    return [run_stage(name, settings, "r1", NullProgress()) for name in ("train", "evaluate", "report", "sample")][-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and last result of a run that nobody changes."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, published(config(folder))


def test_from_a_mixture_s_name_to_published_points(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    settings = config(folder)
    assert result["rows"] == 120 and result["rows_per_class"] == {"two": 120} and "120 points in 3 objects" in result["text"]
    version = folder / "out" / "plane" / "versions" / result["version"]
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["rows_are"] == "points" and manifest["classes"] == ["two"] and manifest["scores"]["runs"] == 2
    tables = [pq.read_table(version / shard["key"]) for shard in manifest["shards"]]
    assert tables[0].column_names == ["x", "y", "label", "uid", "seed", "synthetic"]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["uid"] for row in rows}) == 120 and all(row["synthetic"] and row["label"] == 0 for row in rows)

    # A row is what its seed makes of the checkpoint, whoever asks.
    run = runs.describe_run(settings, "r1")
    generate = walk.load_points(run.folder.get(Checkpoint.from_json(run.folder.get_json(keys.TRAINED)).key))
    made = generate(np.zeros(120, np.int64), np.array([row["seed"] for row in rows]))
    np.testing.assert_allclose(made, [[row["x"], row["y"]] for row in rows], atol=1e-5)

    assert "120 points" in show_dataset(str(folder / "out" / "plane"))["text"]
    assert verify_dataset(str(folder / "out" / "plane"), deep=True, orphans=True)["orphans"] == []
    assert runs.published_version(settings, run) is not None


def test_report_card_and_croissant_of_a_version(tmp_path: Path) -> None:
    mlc = pytest.importorskip("mlcroissant")
    result = published(config(tmp_path, source={"format": "gaussians", "variant": "ring8"}))
    version = tmp_path / "out" / "plane" / "versions" / result["version"]
    page = (version / "report.html").read_text()
    assert page.count("<svg") == 6 + 3 and "log 4" in page and "standard error" in page and "http" not in page.replace("http-equiv", "")
    assert "modes" in (version / "README.md").read_text()
    dataset = mlc.Dataset(jsonld=str(version / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    records = list(dataset.records("points"))
    assert len(records) == 120 and {"points/x", "points/y", "points/uid", "points/synthetic"} == set(records[0])


def test_hugging_face_reads_the_points(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder, result = finished
    files = str(folder / "out" / "plane" / "versions" / result["version"] / "data" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 120 and rows.features["label"].names == ["two"] and isinstance(rows[0]["x"], float)


def test_a_finished_training_is_not_repeated_and_another_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path)
    run_stage("train", settings, "r1", NullProgress())
    monkeypatch.setattr(walk, "train_mixture", lambda *a, **k: pytest.fail("trained again"))
    run_stage("train", settings, "r1", NullProgress())
    with pytest.raises(RunMismatch):
        run_stage("train", config(tmp_path, train={"budget": {"kimg": 7}}), "r1", NullProgress())
    folder = runs.describe_run(settings, "r1").folder
    folder.put("checkpoints/training-001.safetensors", b"\x80\x04rubbish")
    with pytest.raises(RunMismatch, match=r"training-001.*another --run-id"):
        run_stage("train", settings, "r1", NullProgress())


def test_stages_out_of_order_are_told(tmp_path: Path) -> None:
    for name in ("evaluate", "sample", "report"):
        with pytest.raises(RunMismatch, match="ganmill train"):
            run_stage(name, config(tmp_path), "r1", NullProgress())
    assert not (tmp_path / "out").exists()


def test_the_gate_refuses_and_leaves_a_report(tmp_path: Path) -> None:
    settings = config(tmp_path, source={"format": "gaussians", "variant": "grid25"}, gate={"min_diversity": 0.9, "min_coverage": 1.0})
    run_stage("train", settings, "r1", NullProgress())
    with pytest.raises(GateRefused, match=r"gate\.min_diversity.*Nothing was published"):
        run_stage("evaluate", settings, "r1", NullProgress())
    run = runs.describe_run(settings, "r1")
    assert "Refused" in run.folder.get(keys.REPORT).decode()
    assert not run.dataset.exists(keys.LATEST)


def test_damaged_points_are_found(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import pyarrow as pa

    from pipeline.shards.reading import rows_of

    table = pa.table({"x": [1.0, float("nan")], "y": [0.0, 0.0], "label": [0, 0], "uid": ["a", "b"], "synthetic": [True, True]})
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="x is not finite"):
        list(rows_of("parquet", (tmp_path / "bad.parquet").read_bytes()))
    folder, result = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    shard = next((tmp_path / "out" / "plane" / "versions" / result["version"] / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(CorruptShard, match=re.escape(shard.name)):
        verify_dataset(str(tmp_path / "out" / "plane"), deep=False, orphans=False)


def test_validate_says_what_would_happen_and_writes_nothing(tmp_path: Path) -> None:
    found = validate_config(config(tmp_path))
    assert "mixture two, 2 Gaussians" in found["text"] and "120 points in 3 parquet shards" in found["text"]
    assert not (tmp_path / "out").exists()
    timed = validate_config(config(tmp_path, train={"budget": {"minutes": 0.5}}))
    assert "30 s" in timed["text"] and timed["steps"] is None


@pytest.mark.parametrize(("change", "words"), [
    ({"source": {"format": "gaussians", "variant": "ring9"}}, ["variant", "ring8"]),
    ({"source": {"format": "digits", "variant": "two"}}, ["variant", "gaussians alone"]),
    ({"source": {"format": "gaussians", "subset": {"per_class": 3}}}, ["subset"]),
    ({"train": {"model": "dcgan"}}, ["train.model", "only auto"]),
    ({"sample": {"format": "png"}}, ["sample.format", "parquet"]),
    ({"sample": {"filter": {"min_confidence": 0.5}}}, ["sample.filter"]),
    ({"evaluate": {"lift": {"seeds": 3}}}, ["evaluate.lift"]),
    ({"train": {"options": {"momentum": 1}}}, ["train.options", "momentum", "gamma"]),
    ({"train": {"options": {"runs": 0}}}, ["train.options.runs"]),
    ({"train": {"options": {"width": 0}}}, ["train.options", "width"]),
    ({"train": {"options": {"loss": "lsgan"}}}, ["lsgan"]),
    ({"sample": {"target": "balance"}}, ["sample.target"]),
    ({"sample": {"target": {"nine": 5}}}, ["sample.target", "nine"]),
])
def test_what_points_can_not_have_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(config(tmp_path, **change))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.exit_status == 2


def test_defaults_fit_points_and_leave_images_alone() -> None:
    points = parse_config({"name": "p", "source": {"format": "gaussians"}})
    assert points.source.variant == "two" and points.evaluate.lift is None and points.sample.target == {"total": 10_000}
    images = parse_config({"name": "p", "source": {"format": "digits"}})
    assert images.sample.target == "balance" and images.evaluate.lift is not None


# ---- figures and pictures ---------------------------------------------------------------------------------------


def test_scorecard_of_a_run_and_its_verdict() -> None:
    run = train_mixture(MIXTURES["ring8"], MixtureRecipe(steps=30, batch_size=32, width=8, depth=1))
    card = measure([run, run, run], 400, 1.0)
    assert len(card.runs) == 3 and len(card.spread) == 8 and card.high_quality_real > 0.97 and card.reverse_kl_real < 0.03
    assert card.fresh_loss < card.fresh_loss_real and card.summary["high_quality"][1] == pytest.approx(0)
    verdict = decide(config(Path("x"), gate={}).gate, card)
    assert not verdict.passed and verdict.enforced and len(verdict.reasons) == 2
    assert type(card).from_json(card.to_json()) == card
    page = render(config(Path("x")), card, verdict, [run], "r1")
    assert page == render(config(Path("x")), card, verdict, [run], "r1") and b"Refused" in page
    assert card.as_drawn["modes"] <= 8 and b"As drawn" in page
    every = measure([train_mixture(MIXTURES["ring8"], MixtureRecipe(steps=30, batch_size=32, width=8, depth=1, reject=False))], 400, 1.0)
    assert not every.as_drawn and b"As drawn" not in render(config(Path("x")), every, verdict, [run], "r1")


def test_contours_of_a_gaussian_are_circles() -> None:
    points = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0)).double().numpy()
    limits = (-5.0, 5.0)
    density = smoothed(points, limits)
    assert density.sum() == pytest.approx(1, abs=1e-3) and density.shape == (120, 120)
    level = levels_of(density, (np.exp(-0.5),))          # one deviation from the middle, a little wider for the smoothing
    (line,) = [line for line in contours(density, level, limits) if len(line) > 20]
    radius = np.hypot(*np.array(line).T)
    assert radius.mean() == pytest.approx(np.sqrt(1 + (1.5 * 10 / 120) ** 2), rel=0.02) and radius.std() < 0.04
    assert line[0] == line[-1]
    off = smoothed(points + 20.0, limits)
    assert off.sum() == 0 and contours(off, [0.1], limits) == []


def test_plane_draws_what_is_inside_with_equal_axes() -> None:
    drawn = plane([(0.0, 0.0), (1.0, 1.0), (9.0, 9.0)], [[(0, 0), (1, 0)]], label="dots & lines", limits=(-1.0, 1.0), kind="s1")
    (path,) = re.findall(r'<path class="dots s1" d="([^"]*)"', drawn)
    (x0, y0), (x1, y1) = [tuple(map(float, p)) for p in re.findall(r"M([\d.]+) ([\d.]+)h0", path)]
    assert x1 - x0 == pytest.approx(y0 - y1, abs=0.11) and x1 > x0        # y grows upwards, both axes alike
    assert 'aria-label="dots &amp; lines"' in drawn and "polyline" in drawn
    assert "dots" not in plane(label="x", limits=(0.0, 1.0)).split("aria-label")[1]
