"""Intervals, p-values and scores against SciPy, scikit-learn and values by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.lift.statistics import calibration_error, figures, holm, paired_interval, sign_flip_p

torch.set_num_threads(1)


def test_three_pairs_get_students_interval() -> None:
    d = [1.0, 2.0, 4.5]
    want = stats.t.interval(0.95, 2, np.mean(d), stats.sem(d))
    assert paired_interval(d) == pytest.approx(want)


def test_bca_covers_the_mean_about_as_often_as_it_says() -> None:
    """Skewed differences, 12 pairs: the share of intervals that hold the true mean (1) is near 95 %."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(150):
        low, high = paired_interval(rng.exponential(1, 12))
        inside += low <= 1 <= high
    assert 0.82 < inside / 150 < 1


def test_intervals_of_one_pair_and_of_equal_pairs() -> None:
    assert paired_interval([3.0]) == (-100, 100)
    assert paired_interval([0.5] * 7) == (0.5, 0.5)
    with pytest.raises(ValueError, match="finite"):
        paired_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="finite"):
        paired_interval([])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=7))
def test_sign_flip_p_against_enumeration(d: list[float]) -> None:
    sums = [abs(sum(s * x for s, x in zip(signs, d))) for signs in itertools.product((1, -1), repeat=len(d))]
    tolerance = 1e-9 * sum(map(abs, d))
    want = np.mean([s >= abs(sum(d)) - tolerance for s in sums])
    assert sign_flip_p(d) == pytest.approx(want)


def test_sign_flip_p_at_its_ends() -> None:
    assert sign_flip_p([1, 2, 3]) == 0.25
    assert sign_flip_p([1] * 6) == 2 / 64
    assert sign_flip_p([0, 0, 0]) == 1
    assert sign_flip_p(np.random.default_rng(0).normal(0, 1, 40)) > 0.01
    assert sign_flip_p(np.random.default_rng(0).normal(3, 1, 40)) < 1e-4


def test_holm_by_hand() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({}) == {}


def test_figures_against_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 6, 300), rng.normal(0, 1, (300, 6))
    logits[np.arange(300), y] += 1.5
    got = figures(torch.tensor(logits), torch.tensor(y), [60, 50, 40, 30, 20, 10])
    p, guess = torch.tensor(logits).softmax(1).numpy(), logits.argmax(1)
    recall = metrics.recall_score(y, guess, average=None)
    assert got["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, guess))
    assert got["macro_f1"] == pytest.approx(metrics.f1_score(y, guess, average="macro"))
    assert got["nll"] == pytest.approx(metrics.log_loss(y, p))
    assert got["rarest_third"] == pytest.approx(recall[[4, 5]].mean())
    assert list(got["recall"].values()) == pytest.approx(list(recall))


def test_calibration_error_of_a_known_case() -> None:
    p = np.array([[0.8, 0.2]] * 10)
    assert calibration_error(p, np.array([0] * 8 + [1] * 2)) == pytest.approx(0)
    assert calibration_error(p, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.3)
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(1)


def test_figures_leave_out_classes_without_rows() -> None:
    got = figures(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0]), [5, 5, 5])
    assert got["recall"] == {0: pytest.approx(2 / 3)}
    assert got["balanced_accuracy"] == pytest.approx(2 / 3)
