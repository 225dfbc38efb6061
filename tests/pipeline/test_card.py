"""The dataset card: what Hugging Face's own tools read out of it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from published import HOSTILE, config, lift, scorecard, snapshot, write_version

from pipeline.config import GateConfig
from pipeline.documents.card import dataset_card, how_to_load, size_category
from pipeline.documents.figures import figures, lift_sentence, lift_word, points, rarest_and_most_frequent
from pipeline.lift.verdict import published, unjudged
from pipeline.records import LiftFigure
from pipeline.walk import _cards

REAL = {name: 10 + i for i, name in enumerate(HOSTILE)}


def card_of(manifest: dict, classes: tuple[str, ...] = HOSTILE, **options) -> str:
    real = {name: 10 + i for i, name in enumerate(classes)}
    return dataset_card(manifest, scorecard(classes, lift(classes)), snapshot(classes, real), config(), **options)


def manifest_of(classes: tuple[str, ...], rows: int = 10, format_name: str = "parquet") -> dict:
    return {
        "dataset": "digits", "version": "v1", "format": format_name, "classes": list(classes), "rows": rows,
        "bytes": 100, "rows_per_class": dict.fromkeys(classes, 1),
    }


def header_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n", 2)[1])


def names_of(header: dict) -> tuple[str, ...]:
    names = header["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    return tuple(names[str(i)] for i in range(len(names)))


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_load_dataset_reads_the_folder_with_its_class_names(tmp_path, format_name):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path / "version"
    manifest = write_version(folder, format_name, HOSTILE, scores=("confidence",))
    (folder / "README.md").write_text(card_of(manifest, score_columns=("confidence",)), encoding="utf-8")
    (folder / "manifest.json").write_text("{}")
    (folder / "report.html").write_text("<p>")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == manifest["rows"]
    if format_name == "webdataset":
        assert loaded[0]["cls"] == loaded[0]["json"]["label"] == 0 and loaded[0]["png"].size == (32, 32)
        return
    assert tuple(loaded.features["label"].names) == HOSTILE
    assert loaded.column_names == ["image", "label", "uid", "seed", "confidence", "synthetic"]
    assert {row["label"] for row in loaded} == set(range(len(HOSTILE))) and loaded[0]["image"].size == (32, 32)


def test_the_hub_reads_the_header():
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard(card_of(manifest_of(HOSTILE, 1500)))
    assert card.data.pretty_name == "digits (synthetic)" and card.data.size_categories == ["1K<n<10K"]
    assert card.data.task_categories == ["image-classification"] and {"synthetic", "ganmill"} <= set(card.data.tags)
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert card.text.lstrip().startswith("# digits: synthetic images")


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12) | st.sampled_from(HOSTILE)


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_every_name_survives_both_yamls(names):
    import ruamel.yaml

    card = card_of(manifest_of(tuple(names)), tuple(names))
    assert names_of(header_of(card)) == tuple(names)
    modern = ruamel.yaml.YAML(typ="safe", pure=True)
    modern.version = (1, 2)
    assert names_of(modern.load(card.split("---\n", 2)[1])) == tuple(names)


@given(st.integers(0, 10**13))
def test_size_categories_hold_what_they_say(rows):
    def number(text: str) -> int:
        units = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
        return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)

    name = size_category(rows)
    low, high = re.fullmatch(r"(?:n>(\w+)|(?:(\w+)<)?n<(\w+))", name).group(1, 3)
    least = re.match(r"(\w+)<n", name)
    assert high is None or rows < number(high)
    assert low is None or rows >= number(low)
    assert least is None or rows >= number(least.group(1))


def test_nothing_of_a_name_is_markup():
    body = card_of(manifest_of(HOSTILE)).split("---\n", 2)[2]
    assert "<script" not in body
    rows = [line for line in body.splitlines() if re.match(r"\| \d+ \| ", line)]
    assert len(rows) == len(HOSTILE) and all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)


def test_no_secret_is_shown():
    manifest = {**manifest_of(("a",)), "source": {"url": "s3://key:secret@bucket/x?sig=t0ken", "format": "idx"}}
    changed = config(publish={"url": "s3://user:hunter3@bucket/sets", "storage_options": {"secret": "hunter2"}})
    card = dataset_card(manifest, scorecard(("a",)), snapshot(("a",), {"a": 5}), changed)
    assert not re.search("secret|t0ken|hunter", card) and "s3://bucket/sets/digits/versions/v1/data/*.parquet" in card


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_the_code_in_it_runs(tmp_path, format_name, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pytest.importorskip("polars")
    pytest.importorskip("webdataset")
    folder = tmp_path / 'it"s here'
    manifest = write_version(folder, format_name, ("a", "b"))
    (folder / "README.md").write_text(card_of(manifest, ("a", "b")), encoding="utf-8")
    for way in how_to_load(format_name, str(folder)):
        exec(way.code, scope := {})
        assert scope.get("image") is not None or len(scope["synthetic"]) == 6


def test_the_recommended_mix_stands_in_it_with_the_classes_shares():
    mix = {"ratio": 0.5, "class_weights": {"a": 0.75, "b": 0.25}, "synthetic_weight": 0.5, "distinct": 20, "real_only_share": 0.25,
           "logit_adjustment": 1.0, "filter": {"min_confidence": 0.5},
           "augmentation": {"shift": 0.12, "rotate_deg": 18.0, "scale": 0.18, "shear_deg": 0.0, "brightness": 0.2, "flip": True}}
    card = card_of({**manifest_of(("a", "b")), "recommended_mix": mix}, ("a", "b"))
    assert "**0.5 synthetic images per real one**" in card
    assert "drawn 0.5 times as often" in card and "last 25 % of the steps" in card and "τ = 1" in card
    assert "passed min\\_confidence 0.5" in card and "drawn from up to 20 times as many different ones" in card
    assert "(shift up to 12 % of the side, rotation up to 18 °, scaling up to 18 %, brightness up to 10 %, left-right flip)" in card
    assert "share of the draws" in card and "| 1 | b | 11 | 1 | 12 | 25.00 % |" in card
    plain = card_of({**manifest_of(("a", "b")), "recommended_mix": {"ratio": 0.5}}, ("a", "b"))
    assert "In the trial" not in plain and "share of the draws" not in plain


def test_a_version_carries_every_trained_classifier():
    names = ("a", "b")
    figure = lift(names)
    manifest = {**manifest_of(names), "source": {}, "generator": {}, "created": "2026-01-31T02:00:00Z", "shards": []}
    beside = _cards(config(), snapshot(names, {"a": 5, "b": 5}), scorecard(names, figure), manifest)
    told = json.loads(beside["lift.json"])
    assert told["rows"] == [dict(row) for row in figure.rows] and LiftFigure.from_json(told) == figure
    assert {(line["arm"], line["ratio"]): line.get("difference") for line in told["summary"]} == {
        ("classical", 0.0): 0.0, ("synthetic", 0.5): 1.3, ("synthetic", 1.0): 1.3}
    assert all(line["seeds"] == 5 and line["low"] <= line["difference"] <= line["high"] for line in told["summary"])
    nothing = published(unjudged("one class only", (0.5,)))
    assert nothing["lift_pp"] is None and nothing["interval_pp"] is None and nothing["seeds"] == []
    assert "lift.json" not in _cards(config(), snapshot(names, {"a": 5, "b": 5}), scorecard(names), manifest)


def test_no_lift_is_said_in_so_many_words():
    names = ("a", "b")
    assert lift_word(lift(names, 1.3)) == "lift" and not lift_sentence(lift(names, 1.3)).startswith("No lift")
    assert lift_word(lift(names, 0.1)) == "no lift" and lift_sentence(lift(names, 0.1)).startswith("No lift: ")
    assert lift_word(lift(names, -2.0)) == "harm" and lift_sentence(lift(names, -2.0)).startswith("No lift: ")
    lost = dataclasses.replace(lift(names, 1.3), won=False, sentence="No lift, since the recall of class a fell by 3.0 points: …")
    assert lift_word(lost) == "no lift" and lift_sentence(lost) == lost.sentence
    unjudged = dataclasses.replace(lift(names), seeds=(), lift_pp=float("nan"), sentence="Can't be judged, because …")
    assert lift_word(unjudged) == "not judged" and lift_sentence(unjudged) == "Can't be judged, because …"
    assert lift_word(None) is None and "not measured" in lift_sentence(None)
    said = dataclasses.replace(lift(names, 0.0), sentence="There is no lift here.")
    assert lift_sentence(said) == "There is no lift here."


def test_figures_tell_which_threshold_failed():
    names = ("a", "b")
    card = scorecard(names, lift(names, -0.5), coverage=0.3, memorised=0.05, agreement=float("nan"))
    data = snapshot(names, REAL)
    found = {f.name: f for f in figures(card, GateConfig(max_fd_ratio=4.0, min_agreement=0.9), data)}
    failed = {name for name, f in found.items() if f.met is False}
    assert failed == {"Lift", "Coverage", "Memorised", "Label agreement"}, "what can't be measured does not meet it"
    distance = found["Fréchet distance (FD-domain)"]
    assert distance.met is True and "3.1 times" in distance.meaning
    near = {f.name: f for f in figures(scorecard(names, matched={"fd": 2.0}, memorised=0.0), GateConfig(), data)}
    assert near["Fréchet distance (FD-domain)"].meaning.startswith("No farther")
    assert near["Memorised"].meaning.startswith("None of the synthetic images")
    assert found["Label agreement"].value == "n/a" and found["Precision"].met is None
    assert "FID" in {f.name for f in figures(scorecard(names, features="inception"), GateConfig(), data)}
    assert points(-0.0004) == "+0.00" and points(-1.5) == "−1.50"


def test_many_classes_are_folded_to_the_rarest_and_the_most_frequent():
    counts = {f"c{i}": (i * 37) % 101 for i in range(60)}
    shown, folded = rarest_and_most_frequent(counts, tuple(counts))
    ordered = sorted(counts.values())
    assert [counts[n] for n in shown] == ordered[:10] + ordered[-10:]
    assert sorted([*shown, *folded]) == sorted(counts)
    assert rarest_and_most_frequent(counts, ("b", "a")) == (["b", "a"], [])


def test_a_disabled_gate_that_said_no_is_confessed():
    manifest = {**manifest_of(("a",)), "verdict": {"passed": False, "reasons": ["coverage 0.1 is below 0.5"]}}
    card = dataset_card(manifest, scorecard(("a",)), snapshot(("a",), {"a": 5}), config())
    assert "although the gate said no" in card and "coverage 0.1 is below 0.5" in card


def test_truncated_latents_stand_beside_the_generator():
    def told(psi: float) -> str:
        manifest = {**manifest_of(("a",)), "generator": {"model": "dcgan", "trained_kimg": 60}, "truncation": psi}
        return next(line for line in card_of(manifest).splitlines() if line.startswith("| generator |"))

    assert told(0.9) == "| generator | dcgan, 60 kimg, latents truncated by ψ = 0.9 |"
    assert told(1.0) == "| generator | dcgan, 60 kimg |"


def test_templates_and_cards_need_no_file_outside_the_package():
    from pipeline.documents.page import TEMPLATES

    assert Path(TEMPLATES).joinpath("report.html.j2").is_file() and Path(TEMPLATES).joinpath("report.css").is_file()
