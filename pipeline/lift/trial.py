"""One trial: one arm, one seed, one classifier. All arms share this trainer; they differ by what `Arm` says alone."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.classical import ClassicalAugment
from gan.classifier import group_draws, predict, train_classifier
from pipeline.filtering import NO_FILTER, Filter
from pipeline.lift.arms import Arm
from pipeline.lift.pool import Rows
from pipeline.lift.statistics import figures
from pipeline.side_by_side import Stop


@dataclass(frozen=True)
class Schedule:
    """What every classifier of a trial gets."""

    steps: int
    batch_size: int
    width: int = 16

    @classmethod
    def for_data(cls, train_rows: int, channels: int, steps: int | None = None) -> "Schedule":
        """Ten epochs, within what is enough for an easy dataset and affordable for a large one.

        Args:
            steps: optimizer steps, if the config says so.
        """
        ease = 1 if channels == 1 else 2             # colour photographs take longer to learn than glyphs
        batch_size = 64 if train_rows < 1000 else 128
        images = min(max(10 * train_rows, 12_800), 51_200) * ease
        return cls(steps or images // batch_size, batch_size)


@dataclass(frozen=True)
class Bench:
    """The data of a trial; shared by all arms, changed by none."""

    train: Rows
    val: Rows
    test: Rows
    spare: Rows                                      # real rows for the headroom control alone
    classes: tuple[str, ...]
    augment: ClassicalAugment
    schedule: Schedule


@dataclass(frozen=True)
class Mix:
    """How synthetic rows enter the batches."""

    ratio: float = 0.0                               # added rows per real row
    weight: float = 1.0                              # chance of an added row, relative to a real one of its class
    real_only_tail: float = 0.0                      # share of the steps, the last ones, that see real rows only
    filter: Filter = NO_FILTER                       # what a synthetic row must pass


def run_trial(
    arm: Arm, mix: Mix, bench: Bench, added: Rows | None, seed: int, stop: Stop | None = None
) -> dict[str, Any]:
    """Trains the arm's classifier and judges it on val and test.

    Args:
        added: rows beside the real ones; None for none.
        seed: of weights, order and augmentation; arms with the same seed are a pair.

    Returns:
        {"val": figures, "test": figures (see `statistics.figures`), "added_rows": int, "seconds": float}
    """
    began = time.perf_counter()
    rows = bench.train if added is None else bench.train.joined(added)
    schedule, classes = bench.schedule, len(bench.classes)
    draws = _draws(arm, mix, bench.train.labels, None if added is None else added.labels, schedule, seed)
    net = train_classifier(
        rows.images, rows.labels, classes, steps=schedule.steps, batch_size=schedule.batch_size, width=schedule.width,
        seed=seed, augment=bench.augment.scaled(arm.strength) if arm.augment else None, logit_adjustment=arm.logit_adjustment, draws=draws,
        on_step=stop.check if stop else None,
    )
    counts = bench.train.counts(classes).tolist()
    return {
        "val": figures(predict(net, bench.val.images), bench.val.labels, counts),
        "test": figures(predict(net, bench.test.images), bench.test.labels, counts),
        "added_rows": 0 if added is None else len(added), "seconds": round(time.perf_counter() - began, 3),
    }


def _draws(arm: Arm, mix: Mix, real: Tensor, added: Tensor | None, schedule: Schedule, seed: int) -> Tensor:
    """The order of rows, int64 (steps · batch,): real ones are numbered first, added ones after them."""
    rng = np.random.default_rng([seed, 1])
    total = schedule.steps * schedule.batch_size
    if added is None:
        return group_draws(*_groups(arm, real), total, rng)
    tail = round(schedule.steps * mix.real_only_tail) * schedule.batch_size
    weights = class_weights(arm.balanced, mix.weight, real.numpy(), added.numpy())
    if arm.real and not arm.balanced and mix.weight == 1:
        mixed = group_draws([np.arange(len(real) + len(added))], None, total - tail, rng)
    else:
        mixed = mixed_draws(real.numpy(), added.numpy(), weights, mix.weight if arm.real else None, total - tail, rng)
    return torch.cat([mixed, real_draws(real.numpy(), weights, tail, rng)]) if tail else mixed


def _groups(arm: Arm, real: Tensor) -> tuple[list[np.ndarray], None]:
    """Groups of real rows that share the draws evenly: the classes where they are balanced, else all together."""
    labels = real.numpy()
    return [np.flatnonzero(labels == c) for c in np.unique(labels)] if arm.balanced else [np.arange(len(labels))], None


def class_weights(balanced: bool, weight: float, real: np.ndarray, added: np.ndarray) -> dict[int, float]:
    """Each class's share of the draws: even, or by its rows, an added one counting `weight` times a real one."""
    labels = np.unique(np.concatenate([real, added])).tolist()
    size = {c: 1.0 if balanced else float((real == c).sum() + weight * (added == c).sum()) for c in labels}
    return {c: size[c] / sum(size.values()) for c in labels}


def mixed_draws(
    real: np.ndarray, added: np.ndarray, weights: Mapping[int, float], weight: float | None, total: int,
    rng: np.random.Generator,
) -> Tensor:
    """`total` rows, int64: classes by their weights, within a class an added row `weight` times as often as a real one.

    Args:
        real, added: labels; real rows are numbered first.
        weights: class → share of the draws.
        weight: None for added rows alone.
    """
    groups, shares = [], []
    for label in np.union1d(real, added).tolist():
        parts = np.flatnonzero(real == label), len(real) + np.flatnonzero(added == label)
        sizes = [len(parts[0]) if weight is not None else 0, (1.0 if weight is None else weight) * len(parts[1])]
        for part, size in zip(parts, sizes):
            if size and weights.get(label):
                groups.append(part)
                shares.append(weights[label] * size / sum(sizes))
    return group_draws(groups, [share / sum(shares) for share in shares], total, rng)


def real_draws(real: np.ndarray, weights: Mapping[int, float], total: int, rng: np.random.Generator) -> Tensor:
    """`total` rows, int64, of the real ones alone, classes by the same weights."""
    labels = [c for c in np.unique(real).tolist() if weights.get(c)]
    share = sum(weights[c] for c in labels)
    return group_draws([np.flatnonzero(real == c) for c in labels], [weights[c] / share for c in labels], total, rng)
