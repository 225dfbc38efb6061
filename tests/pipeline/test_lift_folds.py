"""Cross-validation of the ways without synthesis: what a handful of val images can't tell, train and val together can."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.classical import ClassicalAugment
from pipeline import lift
from pipeline.config import LiftConfig
from pipeline.documents.lift_section import _story
from pipeline.estimate import classifiers
from pipeline.lift import Bench, Rows, Schedule, measure_lift
from pipeline.lift.folds import FEW_VAL, FEW_VAL_QUICK, FOLDS, assign, folded
from pipeline.lift.laboratory import Replicate
from pipeline.progress import NullProgress
from pipeline.store import Store


def distinct(labels: list[int], first: int = 0) -> Rows:
    """Rows whose images are all different, uint8 (n, 1, 4, 4)."""
    numbers = torch.arange(first, first + len(labels))
    images = torch.stack([numbers >> 8 & 255, numbers & 255] * 8, 1).to(torch.uint8)
    return Rows(images.view(-1, 1, 4, 4), torch.tensor(labels))


def bench(train: list[int], val: list[int], test: list[int]) -> Bench:
    return Bench(distinct(train), distinct(val, 10_000), distinct(test, 20_000), distinct([0, 1], 30_000), ("a", "b"),
                 ClassicalAugment(shift=0.0, rotate_deg=0, scale=0, shear_deg=0), Schedule(1, 4, 4))


def no_draw(labels: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    raise AssertionError("a generator that knows the train split has no place in its folds")


def content(rows: Rows) -> set[bytes]:
    return {image.numpy().tobytes() for image in rows.images}


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=4), copies=st.integers(0, 10), seed=st.integers(0, 99))
def test_folds_spread_each_class_and_keep_copies_together(counts: list[int], copies: int, seed: int) -> None:
    rows = distinct([c for c, n in enumerate(counts) for _ in range(n)])
    rows = rows.joined(rows.take(torch.arange(len(rows))[:copies]))
    fold = assign(rows, seed)
    of = {image.numpy().tobytes(): fold[i] for i, image in enumerate(rows.images)}
    assert all(of[image.numpy().tobytes()] == fold[i] for i, image in enumerate(rows.images))
    for label, count in enumerate(counts):
        mine = fold[: sum(counts)][rows.labels[: sum(counts)].numpy() == label]
        if count == 1:
            assert mine.tolist() == [-1]             # it could not be learnt in the fold that it judges
        else:
            sizes = np.bincount(mine, minlength=FOLDS)
            assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    assert (assign(rows, seed) == fold).all()


def test_every_image_but_test_judges_once_and_is_never_trained_on_where_it_does() -> None:
    data = bench([0] * 9 + [1] * 7, [0] * 3 + [1] * 2, [0, 1] * 10)
    replicates = [Replicate(n, n, data, no_draw) for n in range(3)]
    folds = folded(replicates)
    assert [f.number for f in folds] == list(range(FOLDS)) and len({f.seed for f in folds}) == FOLDS
    judged = [image for f in folds for image in content(f.bench.val)]
    assert len(judged) == len(set(judged)) and set(judged) == content(data.train) | content(data.val)
    for f in folds:
        assert not content(f.bench.train) & content(f.bench.val) and content(f.bench.test) == content(f.bench.val)
        assert not (content(f.bench.train) | content(f.bench.val)) & content(data.test)
        assert len(f.bench.train) + len(f.bench.val) == 21


def test_splits_of_their_own_are_folded_each_and_a_large_val_is_enough() -> None:
    small = [bench([0] * 8 + [1] * 8, [0, 1], [0, 1]) for _ in range(2)]
    assert len(folded([Replicate(n, n, b, no_draw) for n, b in enumerate(small)])) == 2 * FOLDS
    large = dataclasses.replace(small[0], val=distinct([0, 1] * (FEW_VAL // 2), 10_000))
    assert folded([Replicate(0, 0, large, no_draw)]) == []


Told = list[tuple[str, bool]]


def planted(monkeypatch: pytest.MonkeyPatch, on_val: dict[str, float], on_folds: dict[str, float]) -> Told:
    """Trials come out as said, with 0.85 and 0.7 for the rest; returns what was tried, as (arm, on a fold)."""
    tried: Told = []

    def trial(arm: Any, mix: Any, where: Bench, added: Rows | None, seed: int, stop: Any = None) -> dict[str, Any]:
        fold = where.val is where.test
        tried.append((arm.name, fold))
        value = on_folds.get(arm.name, 0.7) if fold else on_val.get(arm.name, 0.85)
        split = {"balanced_accuracy": value, "rarest_third": value, "macro_f1": value, "nll": 1 - value, "ece": 0.0,
                 "recall": {0: value, 1: value}}
        return {"val": split, "test": split, "added_rows": 0, "seconds": 0.0}

    monkeypatch.setattr(lift.laboratory, "run_trial", trial)
    return tried


def draw(labels: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    return distinct(labels.tolist(), 40_000).images


def test_folds_choose_the_way_without_synthesis_that_a_small_val_gets_wrong(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Val prefers balanced sampling by chance; every fold knows that logit adjustment is better."""
    data = bench([0] * 8 + [1] * 8, [0, 1] * 50, [0, 1] * 50)
    planted(monkeypatch, {"A2": 0.9, "A3": 0.8}, {"A2": 0.6, "A3": 0.8})
    run, config = Store(str(tmp_path)), LiftConfig.model_validate({"seeds": 2, "ratios": [0.5, 1.0], "arms": "all"})
    figure = measure_lift(config, data, draw, 0, NullProgress(), run=run, inputs="x", workers=1)
    kept = [info.key for info in run.list("evaluation/lift/") if "-x" in info.key]
    assert figure.arms[0] == "A3" and figure.cross_validated["A3"] == 80.0 and figure.cross_validated["A2"] == 60.0
    assert {"A4, ratio 1"} <= set(figure.cross_validated) and len(kept) == FOLDS * len(figure.cross_validated)
    assert "logit adjustment" in figure.sentence and {row["seed"] for row in figure.rows} == {0, 1}
    assert "by cross-validation over it and the training images: A3 80.00 %, " in _story(figure)
    assert figure.chosen_ratio == 0.0                # 0.85 with synthesis on val is less than the 0.9 that some way without makes there


@pytest.mark.parametrize(("on_folds", "baseline"), [
    ({"A2": 0.6, "A3": 0.8, "A3×1.5": 0.9}, "A3×1.5"),
    ({"A2": 0.6, "A3": 0.8, "A3×1.5": 0.7}, "A3"),
])
def test_a_quick_trial_asks_the_folds_where_val_is_a_handful(
    on_folds: dict[str, float], baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say which way is made stronger, and whether that is the baseline, to which synthesis is then added."""
    tried = planted(monkeypatch, {"A2": 0.9, "A3": 0.8, "A2×1.5": 0.95}, on_folds)
    config = LiftConfig.model_validate({"seeds": 2, "ratios": [0.5, 1.0]})
    data = bench([0] * 8 + [1] * 8, [0, 1] * (FEW_VAL_QUICK // 2 - 1), [0, 1] * 50)
    figure = measure_lift(config, data, draw, 0, NullProgress(), workers=1)
    assert figure.arms == (baseline, "G3") and set(figure.cross_validated) == set(on_folds)
    assert [name for name, fold in tried if fold] == [name for name in on_folds for _ in range(FOLDS)]
    assert len(tried) == classifiers(config, len(data.val))
    assert (("G3×1.5" if baseline == "A3" else "G3×1"), False) in tried
    assert ("A2×1.5", False) not in tried            # which val would have liked best


def test_a_quick_trial_believes_a_val_of_some_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways, and what may be made stronger of them: what is at stake is less than what folds cost."""
    tried = planted(monkeypatch, {"A2": 0.9, "A3": 0.8}, {"A2": 0.6, "A3": 0.8})
    config = LiftConfig.model_validate({"seeds": 2, "ratios": [0.5, 1.0]})
    data = bench([0] * 8 + [1] * 8, [0, 1] * (FEW_VAL_QUICK // 2), [0, 1] * 50)
    figure = measure_lift(config, data, draw, 0, NullProgress(), workers=1)
    assert figure.arms[0] == "A2" and not figure.cross_validated and not any(fold for _, fold in tried)
    assert len(tried) == classifiers(config, len(data.val))


@pytest.mark.parametrize("kind", ["quick", "all"])
@pytest.mark.parametrize(("base", "otherwise", "wins"), [("A2", "G3×1.5", True), ("A2", "G3×1.5", False), ("A2×1.5", "G3×1", True)])
def test_synthesis_too_is_tried_under_the_other_strength_of_augmentation(
    kind: str, base: str, otherwise: str, wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the mix that val likes best; where that is chosen, controls and the advice are of it."""
    on_val = {"A2": 0.89, "A3": 0.8, base: 0.9, "G3": 0.91, otherwise: 0.95 if wins else 0.88}
    tried: list[tuple[str, float, float]] = []

    def trial(arm: Any, mix: Any, where: Bench, added: Rows | None, seed: int, stop: Any = None) -> dict[str, Any]:
        tried.append((arm.name, arm.strength, mix.ratio))
        value = on_val.get(arm.name, 0.7) + (0.01 if mix.ratio == 0.5 else 0) * (arm.name == "G3")
        split = {"balanced_accuracy": value, "rarest_third": value, "macro_f1": value, "nll": 1 - value, "ece": 0.0,
                 "recall": {0: value, 1: value}}
        return {"val": split, "test": split, "added_rows": 0, "seconds": 0.0}

    monkeypatch.setattr(lift.laboratory, "run_trial", trial)
    config = LiftConfig.model_validate({"seeds": 1, "ratios": [0.5, 1.0], "arms": kind})
    data = dataclasses.replace(bench([0] * 8 + [1] * 8, [0, 1] * FEW_VAL, [0, 1] * 50), augment=ClassicalAugment())
    figure = measure_lift(config, data, draw, 0, NullProgress(), workers=1, even=True)
    strong = (otherwise == "G3×1.5") == wins
    assert [way for way in tried if way[0] == otherwise] == [(otherwise, 1.5 if otherwise == "G3×1.5" else 1, 0.5)]    # at the better ratio
    assert figure.arms == (base, otherwise if wins else "G3") and figure.chosen_ratio == 0.5
    assert figure.mix["arm"] == f"classical augmentation, balanced sampling{' (1.5 times as strong)' * strong}, synthetic"
    assert figure.mix["augmentation"]["rotate_deg"] == (18 if strong else 12)
    controls = {(name, strength) for name, strength, _ in tried if name in ("N1", "N2", "O1")}
    assert controls == ({(name, 1.5 if strong else 1.0) for name in ("N1", "N2", "O1")} if kind == "all" else set())
    assert kind == "all" or len(tried) == classifiers(config, len(data.val))
