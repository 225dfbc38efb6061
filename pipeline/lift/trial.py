"""One trial: one arm, one seed, one classifier. All arms share this trainer; they differ by what `Arm` says alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.classical import ClassicalAugment
from gan.classifier import group_draws, predict, train_classifier
from pipeline.config import MOST_DISTINCT
from pipeline.filtering import NO_FILTER, Filter
from pipeline.lift.arms import Arm
from pipeline.lift.pool import Rows, evenly, fill
from pipeline.lift.statistics import figures
from pipeline.side_by_side import Stop

LEAST_IMAGES = 12_800        # that a classifier is shown, however few there are
EPOCHS_OF = 5_120            # rows that are seen so often; more rows, fewer epochs
MOST_IMAGES = 204_800        # colour or not


@dataclass(frozen=True)
class Schedule:
    """What every classifier of a trial gets."""

    steps: int
    batch_size: int
    width: int = 16

    @classmethod
    def for_data(cls, train_rows: int, channels: int, steps: int | None = None, *, epochs: int = 10,
                 least: int = LEAST_IMAGES) -> "Schedule":
        """So many epochs, within what is enough for an easy dataset and affordable for a large one.

        Args:
            steps: optimizer steps, if the config says so.
        """
        ease = 1 if channels == 1 else 2             # colour photographs take longer to learn than glyphs
        batch_size = 64 if train_rows < 1000 else 128
        images = min(ease * min(max(epochs * train_rows, least), EPOCHS_OF * epochs), MOST_IMAGES)
        return cls(steps or images // batch_size, batch_size)

    @classmethod
    def for_lift(cls, train_rows: int, channels: int, steps: int | None = None) -> "Schedule":
        """Four times as long: arms are compared by what they can reach, not by how soon.

        On MNIST 4,000 … 40 the best way without synthesis makes 97.7 % after 400 steps and 98.6 % after 1,600, with 10 a class 92 %
        after 200 and 94 % after 800 (docs/lift.md): a lift over the former would be a lift over a classifier that was stopped too early.
        """
        return cls.for_data(train_rows, channels, steps, epochs=40, least=4 * LEAST_IMAGES)


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
    device: str = "cpu"                              # where classifiers are trained; the data itself stays in the host's memory
    planned: tuple[int, ...] | None = None           # rows of each class that will be published; None: as many as are asked for


@dataclass(frozen=True)
class Mix:
    """How synthetic rows enter the batches.

    How often they are drawn is one thing, how many there are is another: a classifier learns a few images by heart, with all that is
    wrong with them. So `ratio` says what added rows count for, and there are up to `distinct` times as many to draw from.
    """

    ratio: float = 0.0                               # added rows per real row, as they count in the draws
    even: bool = False                               # as many of each class, and of each class's draws the same share
    weight: float = 1.0                              # chance of an added row, relative to a real one of its class
    real_only_tail: float = 0.0                      # share of the steps, the last ones, that see real rows only
    filter: Filter = NO_FILTER                       # what a synthetic row must pass
    distinct: float = 1.0                            # different rows to draw from for each that counts

    def counts(self, real: np.ndarray, available: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """What added rows count beside real ones, both by class, int64 (classes,): evenly, or the scarcest classes first.

        Args:
            available: rows of each class that there are, or will be: those that have some share the added rows out among themselves,
                and none gets more than it has. None: as many as are asked for.
        """
        total = max(1, round(self.ratio * int(real.sum()))) if self.ratio > 0 else 0
        shared_out = evenly if self.even else fill
        if available is None:
            return shared_out(real, total)
        most = np.asarray(available, np.int64)
        return np.minimum(shared_out(np.where(most > 0, real, 0), total), most)

    def rows(self, real: np.ndarray, available: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Different rows to draw from, int64 (classes,): as many as count or more, but no more than are `available`, see `counts`."""
        counted = self.counts(real, available)
        factor = min(self.distinct, MOST_DISTINCT / max(1, int(counted.sum())))
        wanted = np.maximum(counted, np.floor(factor * counted).astype(np.int64))
        return wanted if available is None else np.minimum(wanted, available)

    @property
    def share(self) -> float | None:
        """Of each class's draws, that added rows get; None: whatever their number and `weight` make."""
        return self.weight * self.ratio / (1 + self.weight * self.ratio) if self.even and self.ratio else None


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
        rows.images.to(bench.device), rows.labels.to(bench.device), classes, steps=schedule.steps, batch_size=schedule.batch_size,
        width=schedule.width, seed=seed, augment=bench.augment.scaled(arm.strength) if arm.augment else None,
        logit_adjustment=arm.logit_adjustment, prior_labels=_prior(mix, bench.train.labels, added), draws=draws,
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
    counted = counts_for(mix, real.numpy(), added.numpy())
    weights = class_weights(arm.balanced, 0.0 if mix.even else mix.weight, np.bincount(real.numpy(), minlength=len(counted)), counted)
    if arm.real and mix.share is not None:
        mixed = mixed_draws(real.numpy(), added.numpy(), weights, by_share(mix.share), total - tail, rng)
    elif arm.real and not arm.balanced and mix.weight == 1 and len(added) == counted.sum():
        mixed = group_draws([np.arange(len(real) + len(added))], None, total - tail, rng)
    else:
        split = by_weight(mix.weight if arm.real else None, counted)
        mixed = mixed_draws(real.numpy(), added.numpy(), weights, split, total - tail, rng)
    return torch.cat([mixed, real_draws(real.numpy(), weights, tail, rng)]) if tail else mixed


def counts_for(mix: Mix, real: np.ndarray, added: np.ndarray) -> np.ndarray:
    """What the added rows count for, int64 (classes,): what `mix` says, where there are so many. Labels are given."""
    classes = int(max(real.max(initial=-1), added.max(initial=-1))) + 1
    return mix.counts(np.bincount(real, minlength=classes), np.bincount(added, minlength=classes))


def _prior(mix: Mix, real: Tensor, added: Rows | None) -> Tensor:
    """Labels whose shares are the prior of the logit adjustment: of real rows alone, or of the added ones as they count."""
    if added is None or mix.even:
        return real
    counted = counts_for(mix, real.numpy(), added.labels.numpy())
    return torch.cat([real, torch.arange(len(counted)).repeat_interleave(torch.from_numpy(counted))])


def _groups(arm: Arm, real: Tensor) -> tuple[list[np.ndarray], None]:
    """Groups of real rows that share the draws evenly: the classes where they are balanced, else all together."""
    labels = real.numpy()
    return [np.flatnonzero(labels == c) for c in np.unique(labels)] if arm.balanced else [np.arange(len(labels))], None


def class_weights(balanced: bool, weight: float, real: np.ndarray, added: np.ndarray) -> dict[int, float]:
    """Each class's share of the draws: even, or by its rows, an added one counting `weight` times a real one.

    Args:
        real, added: rows by class, int64 (classes,).
    """
    labels = np.flatnonzero(real + added).tolist()
    size = {c: 1.0 if balanced else float(real[c] + weight * added[c]) for c in labels}
    return {c: size[c] / sum(size.values()) for c in labels}


Split = Callable[[int, int, int], tuple[float, float]]
"""A class, its real rows and its added ones → how its draws are shared out between both, in any unit."""


def by_weight(weight: float | None, counted: np.ndarray) -> Split:
    """An added row that counts `weight` times as often as a real one; None: added rows alone.

    Args:
        counted: what added rows count for, by class; there may be more to draw from.
    """
    return lambda c, real, added: (0.0, float(added)) if weight is None else (float(real), weight * float(counted[c]))


def by_share(share: float) -> Split:
    """The same share of every class that has added rows.

    So nothing about an image's origin tells its class. Where the scarcest classes alone are filled, what generated images have in
    common marks them, and a classifier learns that mark.
    """
    return lambda c, real, added: ((1 - share) * (real > 0), share * (added > 0))


def mixed_draws(
    real: np.ndarray, added: np.ndarray, weights: Mapping[int, float], split: Split, total: int, rng: np.random.Generator,
) -> Tensor:
    """`total` rows, int64: classes by their weights, real and added rows of a class as `split` says.

    Args:
        real, added: labels; real rows are numbered first.
        weights: class → share of the draws.
    """
    groups, shares = [], []
    for label in np.union1d(real, added).tolist():
        parts = np.flatnonzero(real == label), len(real) + np.flatnonzero(added == label)
        sizes = split(label, len(parts[0]), len(parts[1]))
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
