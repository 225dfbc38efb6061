"""How a lift trial draws real and added rows: whose share of the batches is whose, and from how many."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gan.classifier import predict, train_classifier
from pipeline import lift
from pipeline.config import MOST_DISTINCT
from pipeline.lift import Rows, Schedule
from pipeline.lift.arms import AUGMENTED, BALANCED, controls, with_synthesis
from pipeline.lift.laboratory import Replicate, Trial, mean, run_one
from pipeline.lift.trial import Mix, _draws, _groups, _prior, counts_for
from tests.pipeline.bars import SIDE, bench, oracle

torch.set_num_threads(1)


def shares(arm: Any, mix: Mix) -> np.ndarray:
    """Share of the draws of (class, real or added): real 8 and 2 rows, added 2 and 8."""
    real, added = torch.tensor([0] * 8 + [1] * 2), torch.tensor([0] * 2 + [1] * 8)
    drawn = _draws(arm, mix, real, added, Schedule(200, 100), 0).numpy()
    which = np.repeat([0, 2, 1, 3], [8, 2, 2, 8])               # real 0, real 1, added 0, added 1 → class · 2 + added
    return np.bincount(which[drawn], minlength=4) / len(drawn)


def test_balanced_arms_see_classes_evenly_and_others_rows_evenly() -> None:
    balanced = with_synthesis(BALANCED)
    assert shares(balanced, Mix(1.0)) == pytest.approx([0.4, 0.1, 0.1, 0.4], abs=0.01)
    assert shares(with_synthesis(AUGMENTED), Mix(1.0)) == pytest.approx([0.4, 0.1, 0.1, 0.4], abs=0.01)
    light = shares(balanced, Mix(1.0, weight=0.25))
    assert light == pytest.approx([8 / 8.5 / 2, 0.5 / 8.5 / 2, 2 / 4 / 2, 2 / 4 / 2], abs=0.01)


def test_an_even_mix_draws_the_same_share_of_every_class_from_synthetic_rows() -> None:
    mix = Mix(1.0, even=True)                          # however many rows of each class were added: 2 of 10, 8 of 10
    assert mix.share == 0.5 and Mix(1.0, even=True, weight=0.5).share == pytest.approx(1 / 3) and Mix(1.0).share is None
    assert shares(with_synthesis(BALANCED), mix) == pytest.approx([0.25, 0.25, 0.25, 0.25], abs=0.01)
    assert shares(with_synthesis(AUGMENTED), mix) == pytest.approx([0.4, 0.4, 0.1, 0.1], abs=0.01)       # classes as the real rows
    alone = _draws(with_synthesis(BALANCED), mix, torch.tensor([0, 1]), torch.tensor([1]), Schedule(100, 100), 0)
    assert (alone == 0).float().mean() == pytest.approx(0.5, abs=0.02)     # a class without any keeps its draws


def test_what_marks_synthetic_images_is_no_hint_at_a_class_when_they_are_even() -> None:
    """Classes that are noise alone, and a bright corner on whatever was generated."""
    rng = torch.Generator().manual_seed(0)

    def noise_rows(n: list[int]) -> Rows:
        labels = torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n))
        return Rows(torch.randint(0, 256, (len(labels), 1, 8, 8), generator=rng, dtype=torch.uint8), labels)

    def marked(labels: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        x = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=rng, dtype=torch.uint8)
        x[:, :, :3, :3] = 255
        return x

    data = dataclasses.replace(bench([200, 20]), train=noise_rows([200, 20]), schedule=Schedule(60, 64, 8), classes=("head", "tail"))
    said = {}
    for even in (False, True):
        mix = Mix(1.0, even=even)
        added = Replicate(0, 0, data, marked).added(with_synthesis(BALANCED), mix)
        assert added is not None
        every = data.train.joined(added)
        net = train_classifier(every.images, every.labels, 2, steps=60, batch_size=64, width=8, seed=0, draws=_draws(
            with_synthesis(BALANCED), mix, data.train.labels, added.labels, data.schedule, 0))
        said[even] = float(predict(net, marked(np.zeros(200), np.zeros(200))).softmax(1)[:, 1].mean())
    assert said[False] > 0.75 and 0.35 < said[True] < 0.65     # the mark alone says "tail", or nothing


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any), st.floats(0, 3), st.booleans(), st.integers(1, 30))
def test_there_are_more_rows_to_draw_from_than_count(real: list[int], ratio: float, even: bool, distinct: int) -> None:
    counts, mix = np.array(real), Mix(ratio, even=even, distinct=distinct)
    counted, found = mix.counts(counts), mix.rows(counts)
    assert counted.sum() == (max(1, round(ratio * sum(real))) if ratio else 0)
    assert (found >= counted).all() and (found <= np.maximum(counted, distinct * counted)).all()
    assert found.sum() <= max(counted.sum(), MOST_DISTINCT)
    if distinct * counted.sum() <= MOST_DISTINCT:
        assert found.tolist() == (distinct * counted).tolist()


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 400)), min_size=1, max_size=6).filter(lambda rows: any(r for r, _ in rows)),
       st.floats(0.001, 3), st.booleans(), st.integers(1, 30))
def test_no_more_rows_are_tried_than_will_be_published(rows: list[tuple[int, int]], ratio: float, even: bool, distinct: int) -> None:
    real, planned = (np.array(column) for column in zip(*rows))
    mix = Mix(ratio, even=even, distinct=distinct)
    counted, found = mix.counts(real, planned), mix.rows(real, planned)
    assert (counted <= found).all() and (found <= planned).all() and not found[real == 0].any()
    assert counted.sum() <= mix.counts(real).sum()
    assert counted.any() == ((real > 0) & (planned > 0)).any()       # what is published of other classes alone is tried too
    if (planned >= mix.rows(real)).all():                            # a plan that holds all that is asked for changes nothing
        assert counted.tolist() == mix.counts(real).tolist()
    again = counts_for(mix, *(np.repeat(np.arange(len(real)), n) for n in (real, found)))
    assert counted.tolist() == [*again.tolist(), *[0] * (len(real) - len(again))]      # a reader of the published rows counts the same


def test_how_many_rows_there_are_to_draw_from_changes_no_share_of_the_draws_and_no_prior() -> None:
    real, few = torch.tensor([0] * 8 + [1] * 2), torch.tensor([0] * 2 + [1] * 8)
    many, which = few.repeat_interleave(20), np.repeat([0, 2, 1, 3], [8, 2, 40, 160])
    for arm in (with_synthesis(BALANCED), with_synthesis(AUGMENTED)):
        for mix in (Mix(1.0, weight=0.25), Mix(1.0), Mix(1.0, even=True), Mix(1.0, real_only_tail=0.5)):
            drawn = _draws(arm, dataclasses.replace(mix, distinct=20), real, many, Schedule(200, 100), 0).numpy()
            assert np.bincount(which[drawn], minlength=4) / len(drawn) == pytest.approx(shares(arm, mix), abs=0.015)
            assert len(np.unique(drawn)) == 210               # each of them is drawn
            prior = [torch.bincount(_prior(mix, real, Rows(torch.empty(0), rows))).tolist() for rows in (few, many)]
            assert prior[0] == prior[1] == ([8, 2] if mix.even else [10, 10])


def test_arms_draw_from_many_images_where_images_are_to_be_had() -> None:
    replicate, mix = Replicate(0, 0, bench([6, 2]), oracle), Mix(0.5, distinct=10)
    added = {arm.name: replicate.added(arm, mix) for arm in (lift.arms.SYNTHETIC, lift.arms.SMOTE, *controls(BALANCED))}
    counts = {name: rows.counts(2).tolist() for name, rows in added.items() if rows is not None}
    assert counts == {"G1": [0, 40], "A4": [0, 40], "N1": [0, 4], "N2": [0, 40], "O1": [0, 4]}
    assert len({image.numpy().tobytes() for image in added["G1"].images}) == 40
    planned = dataclasses.replace(replicate, bench=dataclasses.replace(replicate.bench, planned=(0, 7)))
    fewer = planned.added(lift.arms.SYNTHETIC, mix)
    assert fewer is not None and fewer.counts(2).tolist() == [0, 7]
    scarce = dataclasses.replace(replicate, bench=dataclasses.replace(replicate.bench, planned=(3, 0)))       # fewer than the ratio counts
    few = {arm.name: scarce.added(arm, mix) for arm in (lift.arms.SYNTHETIC, lift.arms.SMOTE, *controls(BALANCED))}
    assert {name: rows.counts(2).tolist() for name, rows in few.items() if rows is not None} == {
        "G1": [3, 0], "A4": [0, 40], "N1": [3, 0], "N2": few["N2"].counts(2).tolist(), "O1": [3, 0]} and len(few["N2"]) == 3


def test_many_images_with_faults_of_their_own_help_where_a_few_harm() -> None:
    """A generator whose images are right but for a blot, each image its own, in so few real ones that anything is learnt by heart."""
    def blotted(labels: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        x = oracle(labels, seeds)
        for image, seed in zip(x, seeds):
            row, column = np.random.default_rng(int(seed) % 2**31).integers(0, SIDE - 2, 2)
            image[0, row: row + 3, column: column + 3] = 255
        return x

    data = dataclasses.replace(bench([6, 6, 6], held_out=200, steps=150), schedule=Schedule(150, 32, 8))
    said = {}
    for distinct in (1, 30):
        mix = Mix(1.0, even=True, distinct=distinct)
        rows_of = [run_one(Replicate(n, n, data, blotted), Trial(with_synthesis(BALANCED), mix, n)) for n in range(3)]
        said[distinct] = mean(rows_of, "test", "balanced_accuracy")
    assert said[30] > said[1] + 0.02


def test_the_last_steps_can_be_real_only() -> None:
    real, added = torch.tensor([0, 1]), torch.tensor([0, 1] * 10)
    drawn = _draws(with_synthesis(BALANCED), Mix(10.0, real_only_tail=0.25), real, added, Schedule(8, 10), 0)
    assert (drawn[60:] < 2).all()
    assert (drawn[:60] >= 2).any()


def test_last_steps_on_real_rows_keep_the_classes_shares() -> None:
    real, added = torch.tensor([0] * 6 + [1] * 2), torch.tensor([1] * 4)
    drawn = _draws(lift.arms.SYNTHETIC, Mix(1.0, real_only_tail=0.5), real, added, Schedule(200, 100), 0)[10_000:]
    assert (drawn < 8).all()
    assert (drawn < 6).float().mean() == pytest.approx(0.5, abs=0.02)      # 6 of 12 rows, as in the steps before


def test_arms_without_added_rows_have_exactly_even_rounds() -> None:
    groups, parts = _groups(BALANCED, torch.tensor([0, 0, 0, 1]))
    assert [g.tolist() for g in groups] == [[0, 1, 2], [3]]
    assert parts is None
    drawn = _draws(BALANCED, Mix(), torch.tensor([0, 0, 0, 1]), None, Schedule(5, 10), 0)
    assert (drawn == 3).sum() == 25


def test_synthetic_images_alone_means_alone() -> None:
    drawn = _draws(lift.arms.SYNTHETIC_ALONE, Mix(1.0), torch.tensor([0, 1]), torch.tensor([0, 1]), Schedule(5, 10), 0)
    assert (drawn >= 2).all()
