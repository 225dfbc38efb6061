"""Which images, labels and random numbers a step sees: a pure function of (seed, step)."""

import hashlib

import torch
from torch import Tensor

from gan.augment import Augmentation, Draw, draw
from gan.errors import BadData

_MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """A well-mixed 64-bit hash of a 64-bit integer (Steele 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Sampler:
    """Draws each step's batch from uint8 images held in memory.

    Labels come from the tempered prior p(y)^τ, then an image of that class evenly, with replacement. Every worker
    draws the whole batch's numbers and keeps its own rows, so N workers see together what one worker would see.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: int, tau: float, seed: int, batch_size: int,
                 rank: int = 0, world: int = 1) -> None:
        check_data(images, labels, classes)
        if batch_size % world:
            raise BadData(f"batch_size {batch_size} can't be shared evenly by {world} workers")
        device = images.device
        self.images, self.labels = images, labels
        self.batch_size, self.seed = batch_size, splitmix64(seed & _MASK)
        share = batch_size // world
        self.mine = slice(rank * share, (rank + 1) * share)
        rows = torch.arange(rank * share, (rank + 1) * share, device=device)
        self._stacked = None if world == 1 else torch.stack([rows + i * batch_size for i in range(2)])
        self.generator, self.step = torch.Generator(device), 0
        self.rows = torch.empty(0, dtype=torch.long, device=device)      # which images `real` gave last
        counts = torch.bincount(labels, minlength=classes)
        self._order = torch.argsort(labels, stable=True)
        self._first = torch.cumsum(counts, 0) - counts
        self.counts, self._counts = tuple(counts.tolist()), counts.to(torch.float64)
        weights = torch.where(counts > 0, self._counts**tau, 0.0)
        # The last class that has images ends at exactly 1, whatever the rounding.
        self._upper = torch.cumsum(weights / weights.sum(), 0).masked_fill(
            torch.arange(classes, device=device) >= int(counts.nonzero().max()), 1.0)

    def begin(self, step: int) -> None:
        """All draws from now on are those of `step`, in the order in which they are asked for."""
        self.step = step
        self.generator.manual_seed(splitmix64(splitmix64(self.seed + step)) >> 1)

    def renew(self) -> None:
        """Another generator at the start of the same step."""
        self.generator = torch.Generator(self.images.device)
        self.begin(self.step)

    def real(self) -> tuple[Tensor, Tensor]:
        """This worker's rows of the next batch: uint8 images and labels (n,)."""
        u = torch.rand(2, self.batch_size, dtype=torch.float64, generator=self.generator, device=self.images.device)
        y = torch.searchsorted(self._upper, u[0], right=True)
        self.rows = self._order[self._first[y] + (u[1] * self._counts[y]).long()][self.mine]
        return self.images[self.rows], y[self.mine]

    def normal(self, *shape: int) -> Tensor:
        """This worker's rows of the next N(0, 1) numbers, (n, *shape)."""
        device = self.images.device
        return torch.randn(self.batch_size, *shape, generator=self.generator, device=device)[self.mine]

    def augmentation(self, what: Augmentation, p: float | Tensor, batches: int) -> Draw | None:
        """Augmentations for this worker's rows of `batches` batches stacked, e.g. real above generated."""
        drawn = draw(what, batches * self.batch_size, p, self.images.shape[-1], self.generator)
        return drawn if drawn is None or self._stacked is None else drawn.rows(self._stacked[:batches].flatten())

    def uniform(self) -> Tensor:
        """This worker's rows of the next U(0, 1) numbers, (n,)."""
        return torch.rand(self.batch_size, generator=self.generator, device=self.images.device)[self.mine]


def check_data(images: Tensor, labels: Tensor, classes: int) -> None:
    """Raises `BadData` unless images are uint8 (N, C, H, H), labels int64 (N,) in 0 … classes - 1 and N ≥ 1."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[2] != images.shape[3]:
        raise BadData(f"images must be uint8 (N, C, H, H), got {images.dtype} {tuple(images.shape)}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise BadData(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if len(images) == 0:
        raise BadData("there are no images to train on")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise BadData(f"labels reach from {low} to {high}, but there are {classes} classes: 0 … {classes - 1}")


def data_digest(images: Tensor, labels: Tensor) -> str:
    """sha256 (16 hex) over images and labels in their order: which training data a checkpoint belongs to."""
    digest = hashlib.sha256(images.contiguous().cpu().numpy().data)
    digest.update(labels.contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)
