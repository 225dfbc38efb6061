"""Rows that an arm adds: how many of each class, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan.metrics.distances import nearest
from pipeline.seeds import derive, row_seeds

Draw = Callable[[np.ndarray, np.ndarray], Tensor]
"""Labels int64 (n,), latent seeds int64 (n,) → images uint8 (n, C, H, W)."""
Keep = Callable[[Tensor, Tensor], Tensor]
"""Images uint8 (n, C, H, W), labels int64 (n,) → bool (n,): which pass the filter."""

MAX_TRIES = 20                                       # draws for each row that a filter lets through, at most
_BATCH = 512


@dataclass(frozen=True)
class Rows:
    """Labelled images."""

    images: Tensor                                   # uint8 (n, C, H, W)
    labels: Tensor                                   # int64 (n,)

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int) -> np.ndarray:
        """Rows of each class, int64 (classes,)."""
        return torch.bincount(self.labels, minlength=classes).numpy()

    def take(self, index: Tensor) -> "Rows":
        """The rows at `index`."""
        return Rows(self.images[index], self.labels[index])

    def joined(self, *others: "Rows") -> "Rows":
        """These rows, then the others'."""
        every = (self, *others)
        return Rows(torch.cat([r.images for r in every]), torch.cat([r.labels for r in every]))


class CannotFill(Exception):
    """A filter lets too little of a class through; carries the class and the share that passed."""

    def __init__(self, label: int, kept: int, drawn: int) -> None:
        super().__init__(f"class number {label}: {kept} of {drawn} draws passed the filter")
        self.label, self.kept, self.drawn = label, kept, drawn


def fill(counts: np.ndarray, total: int) -> np.ndarray:
    """How `total` added rows are shared out: the smallest classes first, until all are level, the rest evenly.

    Args:
        counts: real training rows by class, int64 (classes,); classes without any get none.

    Returns:
        int64 (classes,), summing to `total` (to 0 when no class has a row).
    """
    added = np.zeros(len(counts), np.int64)
    present = np.flatnonzero(counts)
    if not len(present) or total <= 0:
        return added
    order = present[np.argsort(counts[present], kind="stable")]
    sizes = counts[order].astype(np.int64)
    raised = np.arange(1, len(order) + 1)
    cost = sizes * raised - np.cumsum(sizes)         # rows needed to bring the i smallest to the size of the i-th
    which = int(np.searchsorted(cost, total, side="right"))
    level, left = divmod(total - int(cost[which - 1]), which)
    added[order[:which]] = sizes[which - 1] + level - sizes[:which]
    added[order[:left]] += 1
    return added


def evenly(counts: np.ndarray, total: int) -> np.ndarray:
    """How `total` added rows are shared out: as many to every class that has real rows, int64 (classes,)."""
    present = np.flatnonzero(counts)
    added = np.zeros(len(counts), np.int64)
    if len(present) and total > 0:
        added[present] = total // len(present)
        added[present[: total % len(present)]] += 1
    return added


class SyntheticPool:
    """The generator's images by class, drawn when first asked for; a smaller request is the start of a larger one."""

    def __init__(self, draw: Draw, classes: int, seed: int, keep: Keep | None = None) -> None:
        self._draw, self._seed, self._keep = draw, seed, keep
        self._images: list[list[Tensor]] = [[] for _ in range(classes)]
        self._drawn = [0] * classes

    def take(self, counts: np.ndarray) -> Rows:
        """The first `counts[c]` images of each class c that pass the filter.

        Raises:
            CannotFill: fewer than one draw in twenty of a class passes.
        """
        images, labels = [], []
        for label, count in enumerate(counts.tolist()):
            while (have := sum(map(len, self._images[label]))) < count:
                if self._drawn[label] >= MAX_TRIES * count:
                    raise CannotFill(label, have, self._drawn[label])
                self._draw_more(label, count - have)
            if count:
                images.append(torch.cat(self._images[label])[:count])
                labels.append(torch.full((count,), label))
        if not images:
            raise ValueError("asked for no row")
        return Rows(torch.cat(images), torch.cat(labels))

    def _draw_more(self, label: int, missing: int) -> None:
        drawn = self._drawn[label]
        count = min(max(missing, 16), _BATCH)
        labels = torch.full((count,), label)
        images = self._draw(labels.numpy(), row_seeds(self._seed, label, drawn, count))
        self._drawn[label] = drawn + count
        self._images[label].append(images if self._keep is None else images[self._keep(images, labels)])

    def counts(self) -> dict[int, tuple[int, int]]:
        """Class → (kept, drawn) so far, of classes that were asked for."""
        return {c: (sum(map(len, parts)), self._drawn[c]) for c, parts in enumerate(self._images) if self._drawn[c]}

    def acceptance(self) -> float:
        """Share of the draws so far that passed the filter; 1 before any."""
        drawn = sum(self._drawn)
        return sum(len(part) for parts in self._images for part in parts) / drawn if drawn else 1.0


def shuffled(rows: Rows, seed: int) -> Rows:
    """The same images under the same labels in another order."""
    order = np.random.default_rng(derive(seed, "shuffle")).permutation(len(rows))
    return Rows(rows.images, rows.labels[torch.from_numpy(order)])


def duplicates(train: Rows, counts: np.ndarray, seed: int) -> Rows:
    """`counts[c]` training rows of each class once more."""
    return train.take(_pick(train, counts, seed))


def spare_rows(spare: Rows, counts: np.ndarray, seed: int) -> Rows:
    """Up to `counts[c]` rows of each class that nobody else trains on, none twice."""
    return spare.take(_pick(spare, np.minimum(counts, spare.counts(len(counts))), seed))


def smote(train: Rows, counts: np.ndarray, seed: int, neighbours: int = 5) -> Rows:
    """SMOTE in pixels (Chawla et al. 2002): a random point between a row and one of its five nearest of its class."""
    rng = np.random.default_rng(derive(seed, "smote"))
    first = _pick(train, counts, seed)
    flat = train.images.flatten(1).float()
    second = first.clone()
    for label in np.flatnonzero(counts).tolist():
        members = torch.nonzero(train.labels == label)[:, 0]
        k = min(neighbours, len(members) - 1)
        if k < 1:
            continue                                 # a class of one row: itself again
        near = members[nearest(flat[members], flat[members], k, same=True)[1]]
        places = torch.nonzero(train.labels[first] == label)[:, 0]
        row = torch.searchsorted(members, first[places])
        second[places] = near[row, torch.from_numpy(rng.integers(0, k, len(places)))]
    t = torch.from_numpy(rng.random((len(first), 1))).float()
    mixed = flat[first] * (1 - t) + flat[second] * t
    return Rows(mixed.round().to(torch.uint8).view(-1, *train.images.shape[1:]), train.labels[first])


def _pick(rows: Rows, counts: np.ndarray, seed: int) -> Tensor:
    """`counts[c]` row numbers of each class c, int64: all of a class once before any twice."""
    rng = np.random.default_rng(derive(seed, "pick"))
    picked = []
    for label, count in enumerate(counts.tolist()):
        members = np.flatnonzero(rows.labels.numpy() == label)
        if count and len(members):
            rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
            picked.append(np.concatenate(rounds)[:count])
    return torch.from_numpy(np.concatenate(picked) if picked else np.empty(0, np.int64))
