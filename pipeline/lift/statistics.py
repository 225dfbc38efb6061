"""What paired trials can claim: intervals, exact p-values, and the figures of one classifier on one split."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

BOOTSTRAP_DRAWS = 10_000
EXACT_UPTO = 16                                      # pairs: 65,536 sign patterns; beyond that they are drawn
ECE_BINS = 15
LEAST_FOR_BOOTSTRAP = 6


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of paired differences.

    From six pairs on the bias-corrected accelerated bootstrap (Efron 1987), below it Student's t. Identical
    differences give an interval of no width; of a single one the interval says nothing: -100 … 100 points.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    from scipy import stats

    d = np.asarray(differences, float)
    if not len(d) or not np.isfinite(d).all():
        raise ValueError(f"need finite differences, got {list(differences)}")
    mean = float(d.mean())
    if len(d) == 1:
        return -100.0, 100.0
    if np.ptp(d) < 1e-12:
        return mean, mean
    if len(d) < LEAST_FOR_BOOTSTRAP:
        half = float(stats.t.ppf(0.5 + confidence / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
        return mean - half, mean + half
    found = stats.bootstrap(
        (d,), np.mean, confidence_level=confidence, n_resamples=BOOTSTRAP_DRAWS, method="BCa", vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the mean difference under random signs: exact up to 16 pairs, then 65,536 random patterns.

    The smallest value that n pairs can reach is 2 / 2^n: 0.25 of three, 0.03 of six.
    """
    d = np.asarray(differences, float)
    n = len(d)
    if n <= EXACT_UPTO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.vstack([np.ones(n), np.random.default_rng(0).choice([-1, 1], (2**EXACT_UPTO, n))])
    reached = np.abs(signs @ d) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()
    return float(reached.mean())


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment over several datasets: name → adjusted p."""
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = highest
    return adjusted


def figures(logits: Tensor, labels: Tensor, train_counts: Sequence[int]) -> dict[str, Any]:
    """One classifier on one split, in 0 … 1 (NLL in nats).

    Args:
        logits: (n, classes); labels: int64 (n,), n > 0.
        train_counts: real training rows by class: which third is the rarest.

    Returns:
        balanced_accuracy, accuracy, rarest_third (mean recall), macro_f1, nll, ece, recall {class number: share}.
        Means are over the classes that have rows here.
    """
    p = logits.double().softmax(dim=1).numpy()
    y, guess = labels.numpy(), logits.argmax(dim=1).numpy()
    present = np.unique(y)
    recall = {int(c): float((guess[y == c] == c).mean()) for c in present}
    f1 = {int(c): 2 * int(((guess == c) & (y == c)).sum()) / int((guess == c).sum() + (y == c).sum()) for c in present}
    rarest = sorted(recall, key=lambda c: (train_counts[c], c))[: max(1, len(recall) // 3)]
    return {
        "balanced_accuracy": _mean(recall.values()), "accuracy": float((guess == y).mean()),
        "rarest_third": _mean(recall[c] for c in rarest), "macro_f1": _mean(f1.values()),
        "nll": float(-np.log(p[np.arange(len(y)), y].clip(1e-12)).mean()), "ece": calibration_error(p, y),
        "recall": recall,
    }


def calibration_error(p: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence| over 15 bins of equal width, by rows.

    Args:
        p: probabilities (n, classes); y: labels (n,).
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, right - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(y))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
