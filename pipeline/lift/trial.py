"""One trial: one arm, one seed, one classifier. All arms share this trainer; they differ by what `Arm` says alone."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.classical import ClassicalAugment
from gan.classifier import group_draws, predict, train_classifier
from pipeline.lift.arms import Arm
from pipeline.lift.pool import NO_FILTER, Filter, Rows
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
        seed=seed, augment=bench.augment if arm.augment else None, logit_adjustment=arm.logit_adjustment, draws=draws,
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
    tail = 0 if added is None else round(schedule.steps * mix.real_only_tail) * schedule.batch_size
    mixed = group_draws(*_groups(arm, mix.weight, real, added), total - tail, rng)
    if not tail:
        return mixed
    return torch.cat([mixed, group_draws(*_groups(arm, mix.weight, real, None), tail, rng)])


def _groups(arm: Arm, weight: float, real: Tensor, added: Tensor | None) -> tuple[list[np.ndarray], list[float] | None]:
    """Groups of rows and their shares of the draws (None: even).

    Balanced: each class gets the same share, within it an added row `weight` times a real row's. Otherwise each row
    gets the same share, an added one `weight` times that.
    """
    labels = real.numpy() if added is None else torch.cat([real, added]).numpy()
    if not arm.balanced and arm.real and (added is None or weight == 1):
        return [np.arange(len(labels))], None
    groups, shares = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        parts = [members[members < len(real)], members[members >= len(real)]]
        sizes = [len(parts[0]) * arm.real, weight * len(parts[1])]
        for part, size in zip(parts, sizes):
            if size:
                groups.append(part)
                shares.append(size / sum(sizes) if arm.balanced else size)
    if added is None:
        return groups, None                          # balanced, real rows alone: exactly even rounds
    return groups, [share / sum(shares) for share in shares]
