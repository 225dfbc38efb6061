"""The lift laboratory: planted effects are found, planted nonsense is not, and finished rows are kept."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.classical import ClassicalAugment
from gan.classifier import train_classifier
from pipeline import lift
from pipeline.config import LiftConfig
from pipeline.errors import Interrupted
from pipeline.estimate import classifiers
from pipeline.filtering import Filter
from pipeline.lift import Bench, Rows, Schedule, measure_lift, remote, why_not
from pipeline.lift.arms import ADJUSTED, BALANCED, controls, with_synthesis
from pipeline.lift.folds import FEW_VAL, FEW_VAL_QUICK
from pipeline.lift.laboratory import Laboratory, Replicate, RowBook, Trial, best, grouped, on_threads
from pipeline.lift.pool import (
    CannotFill,
    SyntheticPool,
    duplicates,
    evenly,
    fill,
    shuffled,
    smote,
    spare_rows,
)
from pipeline.lift.trial import Mix
from pipeline.lift.verdict import judged, preference, recommended
from pipeline.progress import NullProgress
from pipeline.side_by_side import Stop, all_side_by_side, side_by_side
from pipeline.store import Store
from tests.pipeline.bars import bench, noise, oracle, rows
from tests.pipeline.small import short_folder

torch.set_num_threads(1)


# ---- how long ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "channels", "networks", "trials"), [
    (100, 1, 12_800, 51_200),                        # many epochs: what is least
    (402, 1, 12_800, 51_200),
    (2_000, 1, 20_000, 80_000),
    (60_000, 1, 51_200, 204_800),                    # what is most
    (500, 3, 25_600, 102_400),
    (50_000, 3, 102_400, 204_800),
])
def test_classifiers_of_a_trial_see_four_times_as_much_as_the_judges(images: int, channels: int, networks: int, trials: int) -> None:
    batch = 64 if images < 1_000 else 128
    judges, arms = Schedule.for_data(images, channels), Schedule.for_lift(images, channels)
    assert (judges.steps, arms.steps) == (networks // batch, trials // batch) and judges.batch_size == arms.batch_size == batch
    assert Schedule.for_lift(images, channels, 7).steps == 7


def chosen(baseline: Sequence[Any], synthetic: Sequence[Any] | None) -> lift.Chosen:
    """As a trial chooses them on val alone."""
    return lift.Chosen(baseline, synthetic, baseline, {})


# ---- the figure -------------------------------------------------------------------------------------------------


def test_a_perfect_generator_lifts_and_a_wrong_one_is_not_recommended(tmp_path: Any) -> None:
    data = bench([60, 12, 3])
    config = LiftConfig(seeds=3, ratios=[2.0, 4.0])
    good = measure_lift(config, data, oracle, 0, NullProgress(), workers=1)
    assert good.lift_pp > 1
    assert good.chosen_ratio in (2.0, 4.0)
    assert good.interval_pp[0] < good.lift_pp < good.interval_pp[1]
    assert len(good.rows) == 3 * 2 * (2 + 1)          # as many ways without synthesis as with it, one of either under stronger augmentation
    assert good.recall_synthetic["c"] > good.recall_baseline["c"]
    wrong = measure_lift(config, data, noise, 0, NullProgress(), workers=1)
    assert wrong.lift_pp < 0
    assert wrong.chosen_ratio == 0
    assert wrong.sentence.startswith("No lift")
    assert wrong.baseline == good.baseline             # paired: the arms without synthetic images are the same


def test_finished_rows_are_kept_and_other_inputs_start_anew(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data, config = Store(str(tmp_path)), bench([8, 8], steps=2), LiftConfig(seeds=2, ratios=[1.0])
    first = measure_lift(config, data, oracle, 0, NullProgress(), run=run, inputs="x", workers=1)
    trained = []
    real = lift.laboratory.run_trial
    monkeypatch.setattr(lift.laboratory, "run_trial", lambda *a: trained.append(a[0].name) or real(*a))
    again = measure_lift(config, data, oracle, 0, NullProgress(), run=run, inputs="x", workers=1)
    assert trained == []
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(first, seconds=0)
    more = measure_lift(LiftConfig(seeds=3, ratios=[1.0]), data, oracle, 0, NullProgress(), run=run, inputs="x", workers=1)
    assert sorted(trained) == ["A2", "A2×1.5", "G3", "G3×1.5"]   # the third seed alone, one way on each side, and both stronger
    assert more.baseline[:2] == first.baseline
    measure_lift(config, data, oracle, 0, NullProgress(), run=run, inputs="y", workers=1)
    assert len(trained) == 4 + 8


def test_a_row_with_synthesis_added_to_another_way_is_not_taken_for_it(tmp_path: Any) -> None:
    """More ratios tried make another baseline the best, and G3 means that one then."""
    book = RowBook(Store(str(tmp_path)), "x")
    before, now = (Trial(with_synthesis(base), Mix(1.0), 0) for base in (BALANCED, ADJUSTED))
    book.write(before, {"arm": "G3", "title": before.arm.title})
    assert before.name == now.name and book.read(now) is None
    assert book.read(before) == {"arm": "G3", "title": before.arm.title}


@pytest.mark.parametrize(("change", "word"), [
    ({"train": rows([9], 1)}, "two classes"),
    ({"val": rows([3, 0, 4], 1)}, "'b' has no validation image"),
    ({"test": rows([0, 0, 4], 1)}, "'a', 'b' have no test image"),
    ({"val": rows([3, 3, 3], 1)}, "9 validation images are too few"),
    ({"test": rows([5, 5, 9], 1)}, "19 test images are too few"),
])
def test_what_cannot_be_judged_gets_a_word_and_no_figure(change: dict[str, Rows], word: str) -> None:
    data = dataclasses.replace(bench([5, 5, 5]), **change)
    assert word in (why_not(data) or "")
    figure = measure_lift(LiftConfig(seeds=3), data, oracle, 0, NullProgress())
    assert figure.seeds == ()
    assert word in figure.sentence
    assert figure.sentence.startswith("Lift can't be judged, because")


def test_a_classifier_that_cannot_learn_is_no_judge() -> None:
    """Random labels everywhere."""
    generator = torch.Generator().manual_seed(0)
    data = bench([60, 60], steps=20)
    mixed = {name: Rows(getattr(data, name).images, torch.randint(0, 2, (len(getattr(data, name)),), generator=generator))
             for name in ("train", "val", "test")}
    figure = measure_lift(LiftConfig(seeds=3), dataclasses.replace(data, **mixed), oracle, 0, NullProgress(), workers=1)
    assert figure.seeds == ()
    assert "did not learn" in figure.sentence


def row(arm: str, ratio: float, seed: int, val: float, test: float, nll: float = 0.1, **more: Any) -> dict[str, Any]:
    part = {"rarest_third": 0.5, "macro_f1": 0.5, "ece": 0.1, "nll": nll, "accuracy": 0.5}
    return {"arm": arm, "title": arm, "balanced": True, "strength": 1.0, "logit_adjustment": 0.0, "ratio": ratio, "even": False,
            "distinct": 1.0, "weight": 1.0, "real_only_tail": 0.0, "filter": "none", "thresholds": {}, "seed": seed,
            "added_rows": 1, "seconds": 1.0, "val": {**part, "balanced_accuracy": val, "recall": {"0": val, "1": val}},
            "test": {**part, "balanced_accuracy": test, "recall": {"0": test, "1": test}}, **more}


def figure_of(
    baseline: list[dict[str, Any]], synthetic: list[dict[str, Any]], memorised: float | None = 0.0,
    more: Sequence[dict[str, Any]] = (), val: int = FEW_VAL,
) -> Any:
    """The figure that a trial with these two arms comes to, on so many val images."""
    laboratory = Laboratory([Replicate(0, 0, bench([4, 4], val // 2), oracle)], None, NullProgress(), on_threads(1))
    laboratory.rows = [*baseline, *synthetic, *more]
    return lift._figure(chosen(baseline, best(grouped(synthetic))), laboratory, (0.5, 1.0), 0.0, memorised)


def test_val_chooses_and_test_is_not_asked() -> None:
    plain = [row("A2", 0, s, 0.80, 0.80) for s in range(3)]
    figure = figure_of(plain, [row("G3", 0.5, s, 0.85, 0.70 + s / 100) for s in range(3)]
                       + [row("G3", 1.0, s, 0.82, 0.99) for s in range(3)])
    assert figure.chosen_ratio == 0.5
    assert figure.lift_pp == pytest.approx(-9)
    assert figure.interval_pp[1] < 0
    assert not figure.won
    tied = grouped([row("G3", 0.5, 0, 0.9, 0.5, nll=0.3), row("G3", 1.0, 0, 0.9, 0.5, nll=0.2)])
    assert (best(tied) or [{}])[0]["ratio"] == 1.0
    assert best([[{"cannot": "x"}]]) is None
    equal = figure_of(plain, [row("G3", 0.5, s, 0.80, 0.9) for s in range(3)])
    assert equal.chosen_ratio == 0                     # no better on val: recommend none
    assert equal.mix["ratio"] == 0
    assert not equal.won


def test_a_win_needs_interval_val_every_class_and_no_copies() -> None:
    plain = [row("A2", 0, s, 0.80, 0.80 + s / 1000) for s in range(6)]
    better = [row("G3", 0.5, s, 0.85, 0.82 + s / 900) for s in range(6)]
    win = figure_of(plain, better)
    assert win.won
    assert win.sentence.startswith("Lift: 0.5 synthetic images per real one gave +2.03 points")
    assert "p = 0.031" in win.sentence
    copied = figure_of(plain, better, memorised=0.05)
    assert not copied.won
    assert copied.sentence.startswith("No lift counted, since 5.0 % of the synthetic images are near copies")
    assert not figure_of(plain, better, memorised=float("nan")).won
    for r in better:
        r["test"]["recall"]["1"] = 0.766
    lost = figure_of(plain, better)
    assert not lost.won
    assert lost.sentence.startswith("No lift, since the recall of class 'b' fell by 3.6 points")
    chance = figure_of(plain, [row("G3", 0.5, s, 0.85, 0.80 + (-1) ** s / 50) for s in range(6)])
    assert not chance.won
    assert chance.sentence.startswith("No lift shown: ")
    unseen = figure_of(plain, [row("G3", 0.5, s, 0.80, 0.9) for s in range(6)])
    assert unseen.sentence.startswith("No lift shown, since validation sees no gain")
    assert unseen.sentence.endswith("validation recommends none.")
    control = [row("N2", 0.5, s, 0.80, 0.815 + s / 1000) for s in range(6)]
    for r in better:
        r["test"]["recall"]["1"] = 0.82
    out_of_order = figure_of(plain, better, more=control)
    assert not out_of_order.won
    assert out_of_order.sentence.startswith("No lift counted, since the same images under shuffled labels")
    harmless = [row("N2", 0.5, s, 0.80, 0.79 + s / 1000) for s in range(6)]
    assert figure_of(plain, better, more=harmless).won
    one = figure_of(plain[:1], better[:1])
    assert not one.won                                 # one seed has no interval


def test_where_val_is_level_its_log_loss_says_whether_synthesis_helps() -> None:
    """How sure a classifier is of the val images still tells."""
    plain = [row("A2", 0, s, 0.9, 0.80, nll=0.3) for s in range(6)]
    for nll, won in ((0.2, True), (0.3, False), (0.4, False)):
        figure = figure_of(plain, [row("G3", 0.5, s, 0.9, 0.82 + s / 1000, nll=nll) for s in range(6)])
        assert figure.won is won and figure.chosen_ratio == (0.5 if won else 0.0)
    worse = figure_of(plain, [row("G3", 0.5, s, 0.88, 0.82 + s / 1000, nll=0.1) for s in range(6)])
    assert not worse.won and worse.chosen_ratio == 0         # accuracy first


@pytest.mark.parametrize(("images", "without", "with_synthesis", "told"), [
    (20, 0.95, 1.0, True), (20, 1.0, 1.0, None), (20, 1.0, 0.95, None), (20, 1.0, 0.85, False), (120, 0.95, 0.93, None),
    (120, 0.95, 0.90, False), (FEW_VAL, 0.95, 0.95, False), (FEW_VAL - 1, 0.95, 0.95, None),
])
def test_a_few_val_images_tell_little(images: int, without: float, with_synthesis: float, told: bool | None) -> None:
    assert preference([row("A2", 0, 0, without, 0.8)], [row("G3", 1, 0, with_synthesis, 0.8)], images) is told


def test_a_val_too_small_to_tell_denies_nothing_and_recommends_what_test_does_not_deny() -> None:
    plain = [row("A2", 0, s, 1.0, 0.80) for s in range(6)]
    lifted = [row("G3", 0.5, s, 1.0, 0.82 + s / 1000, nll=0.2) for s in range(6)]
    figure = figure_of(plain, lifted, val=20)
    assert figure.won and (figure.chosen_ratio, figure.mix["ratio"]) == (0.5, 0.5)
    assert figure.sentence.startswith("Lift: ") and figure.sentence.endswith("; validation is too small to tell.")
    for denied in (figure_of(plain, [row("G3", 0.5, s, 1.0, 0.80 + (-1) ** s / 50) for s in range(6)], val=20),
                   figure_of(plain, lifted, val=20, memorised=0.05),
                   figure_of(plain, lifted, val=20, more=[row("A3", 0, s, 0.9, 0.83) for s in range(6)])):
        assert not denied.won and (denied.chosen_ratio, denied.mix["ratio"]) == (0, 0)
    assert not figure_of(plain, [row("G3", 0.5, s, 0.8, 0.82) for s in range(6)], val=20).won        # val says no, and clearly


def test_the_recommended_mix_says_how_the_chosen_arm_was_trained() -> None:
    plain = [row("A3", 0, s, 0.80, 0.80, balanced=False, logit_adjustment=1.0) for s in range(3)]
    better = [row("G3", 1.0, s, 0.85, 0.82, balanced=False, strength=1.5, logit_adjustment=1.0, distinct=20.0, weight=0.5,
                  real_only_tail=0.25, filter="p0.5", thresholds={"min_confidence": 0.5}) for s in range(3)]
    distorted = dataclasses.replace(bench([9, 3], FEW_VAL), augment=ClassicalAugment())
    laboratory = Laboratory([Replicate(0, 0, distorted, oracle)], None, NullProgress(), on_threads(1))
    laboratory.rows = plain + better
    mix = lift._figure(chosen(plain, better), laboratory, (1.0,), 0.0, 0.0).mix
    assert mix.pop("class_weights") == {"a": pytest.approx((9 + 1.5) / 18), "b": pytest.approx((3 + 4.5) / 18)}
    assert mix == {"ratio": 1.0, "distinct": 20.0, "synthetic_share": None, "synthetic_weight": 0.5, "real_only_share": 0.25,
                   "logit_adjustment": 1.0, "filter": {"min_confidence": 0.5}, "arm": "G3", "augmentation": {
                       "shift": pytest.approx(0.12), "rotate_deg": 18.0, "scale": pytest.approx(0.18), "shear_deg": 9.0, "flip": False,
                       "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "erase": 0.0}}
    even = lift._figure(chosen(plain, [dict(r, even=True) for r in better]), laboratory, (1.0,), 0.0, 0.0)
    assert even.mix["class_weights"] == {"a": 0.75, "b": 0.25}                  # of the real rows
    assert even.mix["synthetic_share"] == pytest.approx(1 / 3) and even.mix["synthetic_weight"] == 1
    assert "synthetic images per real one, evenly over the classes, gave" in even.sentence
    none = lift._figure(chosen(plain, [dict(r, val=plain[0]["val"]) for r in better]), laboratory, (1.0,), 0.0, 0.0).mix
    assert (none["ratio"], none["distinct"], none["arm"], none["filter"]) == (0.0, 1.0, "A3", {})
    assert none["class_weights"] == {"a": 0.75, "b": 0.25} and none["augmentation"]["rotate_deg"] == 12.0
    assert recommended(dict(plain[0], strength=0.0), bench([9, 3]))["augmentation"] == {}         # A0 alone


# ---- what is added ----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 300))
def test_fill_raises_the_smallest_classes_first(counts: list[int], total: int) -> None:
    real = np.array(counts)
    added = fill(real, total)
    assert added.sum() == (total if real.any() else 0)
    assert (added[real == 0] == 0).all()
    after = (real + added)[real > 0]
    if total and real.any():
        raised = (real + added)[added > 0]
        assert raised.max() - raised.min() <= 1        # all that were raised are level
        assert after.min() >= raised.max() - 1         # and nothing below them was left out


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 300))
def test_evenly_gives_every_class_as_many(counts: list[int], total: int) -> None:
    real = np.array(counts)
    added = evenly(real, total)
    assert added.sum() == (total if real.any() else 0) and (added[real == 0] == 0).all()
    assert not real.any() or added[real > 0].max() - added[real > 0].min() <= 1


def test_the_pool_is_nested_and_follows_from_its_seed() -> None:
    small = SyntheticPool(oracle, 3, 7).take(np.array([2, 0, 3]))
    pool = SyntheticPool(oracle, 3, 7)
    pool.take(np.array([1, 1, 1]))
    large = pool.take(np.array([40, 2, 5]))
    assert small.labels.tolist() == [0, 0, 2, 2, 2]
    assert torch.equal(large.images[large.labels == 0][:2], small.images[:2])
    assert torch.equal(large.images[large.labels == 2][:3], small.images[2:])
    assert not torch.equal(SyntheticPool(oracle, 3, 8).take(np.array([2, 0, 3])).images, small.images)


def test_the_filter_decides_what_enters_and_a_class_that_cannot_be_filled_ends() -> None:
    bright = SyntheticPool(oracle, 2, 0, keep=lambda x, y: x.float().mean((1, 2, 3)) > 75)
    assert (bright.take(np.array([5, 5])).images.float().mean((1, 2, 3)) > 75).all()
    assert 0 < bright.acceptance() < 1
    none = SyntheticPool(oracle, 2, 0, keep=lambda x, y: y != 1)
    with pytest.raises(CannotFill) as caught:
        none.take(np.array([3, 3]))
    assert (caught.value.label, caught.value.kept) == (1, 0)
    assert caught.value.drawn < 1000


def test_all_arms_find_the_lift_and_the_controls_behave() -> None:
    data = bench([60, 12, 3])
    net = train_classifier(data.train.images, data.train.labels, 3, steps=40, batch_size=32, width=8, seed=0, balanced=True)
    config = LiftConfig(seeds=2, ratios=[4.0], arms="all")
    figure = measure_lift(config, data, oracle, 0, NullProgress(), model=net, workers=1)
    mean = {name: np.mean([row["test"] for row in figure.rows if row["arm"] == name]) for name in
            ("A0", "A1", "A2", "A3", "A4", "G1", "G2", "G3", "N1", "N2", "O1", "S1")}
    assert figure.lift_pp > 0
    assert mean["O1"] > mean["A2"] + 1                 # there is headroom, and real images use it
    assert mean["N2"] < mean["O1"] - 5
    assert mean["N2"] < max(mean["A2"], mean["A3"]) + 0.5     # wrong labels never win
    assert mean["N1"] < mean["O1"]
    assert max(mean["G1"], mean["G2"], mean["G3"]) > max(mean["A0"], mean["A1"])
    assert {row["filter"] for row in figure.rows if row["arm"] == "G2"} == {"p0.5d0.95"}
    ways = {(row["arm"], row["ratio"], row["filter"], row["weight"], row["real_only_tail"]) for row in figure.rows}
    without, with_synthesis = ([way for way in ways if way[0].startswith(letter)] for letter in "AG")
    assert len(without) == len(with_synthesis) == 8    # neither side is tuned more than the other
    assert len(figure.rows) == classifiers(config, FEW_VAL, even=False)
    assert {way[3:] for way in with_synthesis} == {(1.0, 0.0), (0.5, 0.0), (1.0, 0.25), (0.5, 0.25)}


def test_an_even_mix_is_tried_where_every_class_will_be_published() -> None:
    figure = measure_lift(LiftConfig(seeds=1, ratios=[1.0], arms="all"), bench([20, 8], steps=3), oracle, 0, NullProgress(), workers=1,
                          even=True)
    ways = {(row["arm"], row["even"], row["weight"], row["real_only_tail"]) for row in figure.rows}
    assert {way[1:] for way in ways if way[0] == "G3"} == {
        (True, 1.0, 0.0), (True, 0.5, 0.0), (True, 1.0, 0.25), (True, 0.5, 0.25), (False, 1.0, 0.25)}
    distinct = {arm: {row["distinct"] for row in figure.rows if row["arm"] == arm} for arm in ("A2", "A4", "G1", "G3", "N2", "S1")}
    assert distinct == {"A2": {1}, "A4": {20}, "G1": {20}, "G3": {20}, "N2": {20}, "S1": {20}}
    assert {way[1] for way in ways if way[0] == "G1"} == {False}       # whose classes synthetic rows alone make level
    assert {arm: even for arm, even, _, _ in ways if arm in ("N1", "N2")} in ({"N1": True, "N2": True}, {"N1": False, "N2": False})
    assert {way[1] for way in ways if way[0] == "O1"} == {False}       # real images where they are worth most
    without, with_synthesis = ([way for way in ways if way[0].startswith(letter)] for letter in "AG")
    assert len(without) == len(with_synthesis)
    quick = measure_lift(LiftConfig(seeds=1, ratios=[1.0]), bench([20, 8], steps=3), oracle, 0, NullProgress(), workers=1, even=True)
    assert {(row["even"], row["real_only_tail"]) for row in quick.rows if row["arm"] == "G3"} == {(True, 0.25)}
    assert len(quick.rows) == classifiers(LiftConfig(seeds=1, ratios=[1.0]), FEW_VAL_QUICK)


def test_rows_are_tried_as_they_will_be_published() -> None:
    data = bench([20, 12, 6], steps=10)
    net = train_classifier(data.train.images, data.train.labels, 3, steps=40, batch_size=32, width=8, seed=0, balanced=True)
    config = LiftConfig(seeds=1, ratios=[1.0])
    figure = measure_lift(config, data, oracle, 0, NullProgress(), model=net, published=Filter(min_confidence=0.3), workers=1)
    assert [row["filter"] for row in figure.rows if row["arm"] == "G3"] == ["p0.3"]
    every = measure_lift(LiftConfig(seeds=1, ratios=[1.0], arms="all"), data, oracle, 0, NullProgress(), model=net, workers=1)
    assert every.mix["filter"] == {}                   # rows will be published unfiltered, so these alone are judged
    filters = {row["filter"]: row["val"] for row in every.rows if row["arm"].startswith("G")}
    assert set(filters) == {"none", "p0.5d0.95"}
    strict = measure_lift(config, data, noise, 0, NullProgress(), model=net, published=Filter(min_confidence=0.99), workers=1)
    assert strict.seeds == ()
    assert "draws passed the filter" in strict.sentence


def test_controls_add_what_they_say() -> None:
    data = bench([6, 2])
    wanted = np.array([3, 9])
    doubled = duplicates(data.train, wanted, 0)
    assert doubled.counts(2).tolist() == [3, 9]
    train = {x.numpy().tobytes() for x in data.train.images}
    assert all(x.numpy().tobytes() in train for x in doubled.images)
    mixed = shuffled(doubled, 0)
    assert torch.equal(mixed.images, doubled.images)
    assert not torch.equal(mixed.labels, doubled.labels)
    assert mixed.counts(2).tolist() == [3, 9]
    extra = spare_rows(data.spare, np.array([3, 99]), 0)
    assert extra.counts(2).tolist() == [3, 30]
    assert len({x.numpy().tobytes() for x in extra.images}) == 33


def test_smote_lies_between_two_rows_of_the_class() -> None:
    x = torch.tensor([0, 0, 100, 200], dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
    train = Rows(x, torch.tensor([0, 1, 1, 1]))
    made = smote(train, np.array([4, 50]), 0)
    assert made.counts(2).tolist() == [4, 50]
    assert (made.images[made.labels == 0] == 0).all()          # one row: itself
    values = made.images[made.labels == 1][:, 0, 0, 0]
    assert len(values.unique()) > 10
    assert torch.equal(made.images[made.labels == 1], values.view(-1, 1, 1, 1).repeat(1, 1, 8, 8))


# ---- the arms -----------------------------------------------------------------------------------------------------


def test_a_quick_trial_holds_synthesis_against_stronger_augmentation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is what val likes best, it is the baseline, and what synthesis is added to; but not at this strength alone."""
    asked = []

    def planted(arm: Any, mix: Mix, where: Bench, added: Rows | None, seed: int, stop: Any = None) -> dict[str, Any]:
        asked.append((arm.name, arm.strength, mix.ratio))
        value = {"A2": 0.8, "A3": 0.82, "A3×1.5": 0.9}.get(arm.name, 0.85)
        return {split: {"balanced_accuracy": value, "rarest_third": value, "macro_f1": value, "nll": 1 - value, "ece": 0.0,
                        "recall": {0: value, 1: value}} for split in ("val", "test")} | {"added_rows": 0, "seconds": 0.0}

    monkeypatch.setattr(lift.laboratory, "run_trial", planted)
    figure = measure_lift(LiftConfig(seeds=1, ratios=[0.5, 1.0]), bench([20, 8]), oracle, 0, NullProgress(), workers=1)
    assert asked == [("A2", 1, 0), ("A3", 1, 0), ("A3×1.5", 1.5, 0), ("G3", 1.5, 0.5), ("G3", 1.5, 1.0),
                     ("G3×1", 1, 0.5)]
    assert figure.arms == ("A3×1.5", "G3") and figure.chosen_ratio == 0
    assert lift.arms.stronger(lift.arms.PLAIN) == [] == lift.arms.stronger(lift.arms.tuned(BALANCED, strength=1.5))


def test_the_ladder_without_synthesis_is_long_enough() -> None:
    for quick in (True, False):
        names = [(arm.name, ratio) for arm, ratio in lift.arms.ladder([0.25, 0.5, 1.0, 2.0], quick)]
        assert len(names) == len(set(names)) >= (4 if quick else 19)
        assert [name for name, _ in names[:2]] == ["A2", "A3"]


@pytest.fixture
def ray_with_two_cpus() -> Any:
    import ray

    with short_folder() as temp:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=temp)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])    # workers don't find this file
        yield
        ray.shutdown()


def test_trials_on_ray_give_the_rows_that_threads_give(ray_with_two_cpus: Any) -> None:
    data = bench([10, 4], steps=3)
    replicates = {n: Replicate(n, n, data, oracle) for n in range(2)}
    trials = [Trial(arm, mix, n) for arm, mix in ((BALANCED, Mix()), (with_synthesis(BALANCED), Mix(1.0))) for n in range(2)]
    there = {number: {**row, "seconds": 0} for number, row in remote.on_ray(trials, replicates)}
    here = {number: {**row, "seconds": 0} for number, row in on_threads(1)(trials, replicates)}
    assert there == here
    assert not remote.cluster_is_larger()              # as large as this machine: threads are cheaper


# ---- a baseline that validation chose badly ---------------------------------------------------------------------


def planted(arm: str, test: list[float]) -> list[dict[str, Any]]:
    """Rows of an arm as they are kept, a seed each, with these accuracies on test."""
    def figures(reached: float) -> dict[str, Any]:
        return {"balanced_accuracy": reached, "rarest_third": reached, "macro_f1": reached, "nll": 1.0, "ece": 0.1,
                "recall": {"0": reached, "1": reached}}

    return [{"arm": arm, "title": f"way {arm}", "balanced": True, "strength": 1.0, "logit_adjustment": 0.0,
             "ratio": 0.5 if arm == "G3" else 0.0, "even": False, "distinct": 1.0, "weight": 1.0, "real_only_tail": 0.0,
             "filter": "none", "thresholds": {}, "seed": seed, "val": figures(0.9), "test": figures(reached),
             "added_rows": 0, "seconds": 1.0} for seed, reached in enumerate(test)]


@pytest.mark.parametrize(("passed_over", "won"), [
    ([0.95, 0.96, 0.94, 0.95, 0.95, 0.96], False),   # as good as the chosen one with synthesis
    ([0.92, 0.93, 0.91, 0.92, 0.92, 0.93], True),    # better than the baseline, and still beaten
    ([0.89, 0.90, 0.88, 0.89, 0.89, 0.90], True),    # worse than the baseline: no rival
])
def test_a_win_must_hold_over_what_validation_passed_over(passed_over: list[float], won: bool) -> None:
    baseline, synthetic = planted("A2", [0.90, 0.91, 0.89, 0.90, 0.90, 0.91]), planted("G3", [0.95, 0.96, 0.95, 0.94, 0.96, 0.95])
    every = [*baseline, *planted("A3×1.5", passed_over), *planted("A4", [0.99] * 2), *synthetic]     # A4 is not whole
    figure = judged(baseline, synthetic, every, bench([10, 10], steps=1), (0.5,), True, 0.0)
    assert figure.won == won and figure.lift_pp == pytest.approx(5.0)
    assert figure.rival.get("arm") == ("A3×1.5" if passed_over[0] > 0.9 else None)
    if not won:
        assert figure.sentence.startswith("No lift counted, since validation passed over") and "over way A3×1.5" in figure.sentence
        assert figure.rival["low"] < 0 < figure.rival["high"]


def test_from_six_seeds_on_a_win_needs_a_p_that_says_so_too() -> None:
    baseline = planted("A2", [0.90, 0.91, 0.89, 0.90, 0.90, 0.91])
    for gains, won in (([1, 1, 1, 0, 0, 0], False), ([1, 1, 1, 1, 0, 0], False), ([1, 1, 1, 1, 1, 2], True)):
        synthetic = planted("G3", [row["test"]["balanced_accuracy"] + gain / 100 for row, gain in zip(baseline, gains)])
        figure = judged(baseline, synthetic, [*baseline, *synthetic], bench([10, 10], steps=1), (0.5,), True, 0.0)
        assert figure.interval_pp[0] > 0 and figure.won == won       # the bootstrap of six is too sure of itself
        assert figure.sentence.startswith("Lift: " if won else "No lift shown, since p is above 0.05: ")
    few = planted("G3", [0.92, 0.93, 0.91])                          # of three no p can say so, and the interval is Student's
    assert judged(baseline[:3], few, [*baseline[:3], *few], bench([10, 10], steps=1), (0.5,), True, 0.0).won


def test_nothing_has_no_minus() -> None:
    assert [lift.verdict._signed(value) for value in (-0.001, 0.0, 0.004, -0.006, 1.5)] == ["+0.00", "+0.00", "+0.00", "−0.01", "+1.50"]


def test_a_plan_of_fewer_rows_than_the_ratio_counts_is_told() -> None:
    data = bench([10, 10], steps=1)
    baseline, synthetic = planted("A2", [0.9] * 3), planted("G3", [0.9] * 3)
    for planned, said in ((None, False), ((5, 5), False), ((4, 3), True)):
        figure = judged(baseline, synthetic, [*baseline, *synthetic], dataclasses.replace(data, planned=planned), (0.5,), True, 0.0)
        assert ("0.5 synthetic images per real one, of which only 7 will be published, gave" in figure.sentence) == said


# ---- side by side -----------------------------------------------------------------------------------------------


def test_jobs_run_with_one_thread_each_and_the_count_comes_back() -> None:
    torch.set_num_threads(2)
    try:
        assert all_side_by_side([lambda stop, i=i: (i, torch.get_num_threads()) for i in range(5)], 2) == [
            (i, 1) for i in range(5)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_failing_job_stops_the_others() -> None:
    ended = []

    def endless(stop: Stop) -> None:
        try:
            while True:
                stop.check()
        except Interrupted:
            ended.append(True)
            raise

    def failing(stop: Stop) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(side_by_side([endless, failing], 2))
    assert ended == [True]


def test_every_arm_and_control_runs() -> None:
    data = bench([10, 4], steps=3)
    laboratory = Laboratory([Replicate(0, 0, data, oracle)], None, NullProgress(), on_threads(2))
    arms = [(arm, Mix(1.0)) for arm in (*lift.arms.WITHOUT_SYNTHESIS, *controls(BALANCED), lift.arms.SYNTHETIC_ALONE,
                                        lift.arms.SYNTHETIC)]
    made = laboratory.conduct(arms)
    assert [row["arm"] for row in made] == [arm.name for arm, _ in arms]
    assert {row["arm"]: row["added_rows"] for row in made} == {
        "A0": 0, "A1": 0, "A2": 0, "A3": 0, "A4": 14, "N1": 14, "N2": 14, "O1": 14, "S1": 14, "G1": 14}
    assert judged(made[:1], made[-1:], made, data, (1.0,), True, 0.0).interval_pp == (-100, 100)
