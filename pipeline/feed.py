"""Feeding a training job: the run's real training images and a published version's synthetic ones, mixed as advised.

The mix is the lift trial's: as many synthetic draws per real one as validation chose (none, if it chose none), evenly over
the classes or the scarcest filled first; then classes are drawn by the weights that the manifest gives (evenly where it gives
none), and within a class synthetic rows get the share of the draws, or the weight beside a real row, that it says. They are drawn
from many more different ones, where the version holds them. `augment` distorts as the trial did. Val and test images are never read here.

    feed = Feed.open("s3://bucket/sets/defects")
    for images, labels in feed.loader(batch_size=64, epoch=0):
        loss = cross_entropy(model(feed.augment(images)) + feed.logit_offset, labels)
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gan.classical import ClassicalAugment
from gan.classifier import group_draws
from pipeline import keys, manifest
from pipeline.config import LiftConfig
from pipeline.errors import ConfigError, CorruptShard, MissingObject
from pipeline.lift.pool import Rows
from pipeline.lift.trial import Mix, by_share, by_weight, class_weights, mixed_draws, real_draws
from pipeline.manifest import locate
from pipeline.prepare import load_split
from pipeline.shards.reading import decode, rows_of
from pipeline.store import Store
from pipeline.verification import opened

if TYPE_CHECKING:
    import datasets
    import ray.data

Transform = Callable[[Tensor], Any]
"""What is done to each image, uint8 (C, H, W), on its way to the training job."""


def to_float(image: Tensor) -> Tensor:
    """uint8 (C, H, W) → float32 (C, H, W) in [0, 1]."""
    return image.float().div(255)


@dataclass(frozen=True)
class Feed:
    """Real and synthetic rows; numbered real ones first.

    Attributes:
        synthetic: the rows to draw from; there may be more of them than `ratio` counts.
        ratio: synthetic draws per real one; fewer where there are fewer rows than that.
        seed: of the order.
        weights: class number → share of the draws; None: every class evenly.
        synthetic_weight: how often a synthetic row is drawn, relative to a real one of its class.
        synthetic_share: of each class's draws that synthetic rows get, where it has any; None: as their number and weight make.
        real_only_share: of the epochs, the last ones, for which real rows alone were best; `sampler` keeps to it.
        logit_adjustment: tau of the loss with which the mix was tried (Menon et al. 2021); 0 for plain cross-entropy. See
            `logit_offset`.
        augmentation: the classical one that the mix was tried with; None: none.
    """

    classes: tuple[str, ...]
    real: Rows
    synthetic: Rows
    ratio: float
    seed: int = 0
    weights: Mapping[int, float] | None = None
    synthetic_weight: float = 1.0
    real_only_share: float = 0.0
    logit_adjustment: float = 0.0
    synthetic_share: float | None = None
    augmentation: ClassicalAugment | None = None

    @classmethod
    def open(cls, url: str, *, ratio: float | None = None, seed: int = 0,
             storage_options: Mapping[str, Any] | None = None) -> "Feed":
        """Reads the rows of a dataset's latest version, or of a version's own URL.

        Args:
            url: `<publish.url>/<name>`, or a version's folder below it.
            ratio: synthetic draws per real one, every class drawn evenly and, where the version holds images of every class, with the same
                share of synthetic ones; None: the mix that the version's manifest recommends.
            seed: of the order.

        Raises:
            ConfigError: the version recommends nothing and no ratio is given, or the ratio is no number from 0.
            MissingObject: nothing is published there, or the run folder with the real images was removed.
            CorruptShard: an object is not what the manifest says.
        """
        dataset, name = locate(url, storage_options)
        folder, content = opened(dataset, name)
        mix = content["recommended_mix"] if ratio is None else {}
        advised = mix.get("ratio") if ratio is None else ratio
        if advised is None:
            raise ConfigError(f"{folder.where()} was published without a lift trial, so it recommends no mix; give ratio=")
        if not 0 <= advised < math.inf:
            raise ConfigError(f"ratio {advised:g}: must be 0 or more synthetic rows per real one")
        run = dataset.child(keys.run(content["run_id"]))
        try:
            split = load_split(run, "train")
        except MissingObject:
            raise MissingObject(f"{run.where()} holds no real training images any more; build Feed(classes, real, "
                                "synthetic, ratio) from your own") from None
        real = Rows(torch.from_numpy(split.images), torch.from_numpy(split.labels))
        classes = tuple(content["classes"])
        counts, available = real.counts(len(classes)), np.array([content["rows_per_class"].get(name, 0) for name in classes])
        if ratio is None:
            share, distinct = mix.get("synthetic_share"), float(mix.get("distinct", 1))
        else:                                        # as the trial fills: see `pipeline.plan.makes_every_class`
            share, distinct = Mix(ratio, even=bool((available[counts > 0] > 0).all())).share, LiftConfig().distinct
        wanted = Mix(float(advised), even=share is not None, distinct=distinct)
        synthetic = read_rows(folder, content, wanted.rows(counts, available), tuple(real.images.shape[1:]))
        given = mix.get("class_weights")
        weights = {c: float(given[name]) for c, name in enumerate(classes) if name in given} if given else None
        strengths = content["recommended_mix"].get("augmentation")       # which don't depend on the ratio, but on what labels bear
        return cls(classes, real, synthetic, float(advised), seed, weights, float(mix.get("synthetic_weight", 1.0)),
                   float(mix.get("real_only_share", 0.0)), float(mix.get("logit_adjustment", 0.0)), share,
                   ClassicalAugment(**strengths) if strengths else None)

    def __len__(self) -> int:
        return len(self.real) + len(self.synthetic)

    @property
    def logit_offset(self) -> Tensor:
        """τ · log of each class's share of the rows, float32 (classes,): added to the logits in the training loss alone.

        With it the loss is the one with which the mix was tried, `cross_entropy(logits + feed.logit_offset, labels)`; zeros
        where that was plain cross-entropy; real rows alone count where `synthetic_share` is set (Menon et al. 2021, "Long-tail
        learning via logit adjustment", equation 10).
        """
        rows = self.real.counts(len(self.classes)) + (0 if self.synthetic_share is not None else self.counted)
        share = torch.from_numpy(rows).float() / int(rows.sum())
        return self.logit_adjustment * share.clamp_min(1e-8).log()

    def augment(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images as the trial's classifiers saw them: shifted, turned, scaled and sheared at random, each otherwise.

        Args:
            images: float (n, C, H, W) in [0, 1], as `loader` gives them; on any device. Not changed in place.
            generator: of the random numbers; None: torch's own.

        Returns:
            As many, of the same shape and range; `images` themselves where no augmentation was tried.
        """
        if self.augmentation is None:
            return images
        return (self.augmentation(images * 2 - 1, generator or torch.default_generator) + 1) / 2

    @property
    def counted(self) -> np.ndarray:
        """What synthetic rows count for in an epoch, by class, int64 (classes,): `ratio` real rows' worth, if there are so many."""
        classes = len(self.classes)
        mix = Mix(self.ratio, even=self.synthetic_share is not None)
        return mix.counts(self.real.counts(classes), self.synthetic.counts(classes))

    def dataset(self, transform: Transform = to_float) -> "MixedImages":
        """All rows once, for a torch DataLoader with `sampler()`: there may be many more synthetic ones than the mix draws in an epoch."""
        return MixedImages(self.real.joined(self.synthetic), len(self.real), transform)

    def order(self, epoch: int, *, real_only: bool = False) -> Tensor:
        """Numbers of the rows of one epoch, int64: as many as there are real rows and count of the others, classes by their weights.

        Args:
            real_only: of real rows alone, as many as there are of them: good for the last epochs.
        """
        real = self.real.labels.numpy()
        synthetic = self.synthetic.labels.numpy()[: 0 if real_only else None]
        counted = self.counted * (not real_only)
        total, rng = len(real) + int(counted.sum()), np.random.default_rng([self.seed, epoch])
        if self._evenly:                             # exactly even, and every row of a class as often as the next
            labels = np.concatenate([real, synthetic])
            return group_draws([np.flatnonzero(labels == c) for c in np.unique(labels)], None, total, rng)
        weights = self.weights or class_weights(True, 1.0, self.real.counts(len(self.classes)), counted)
        if not total > len(real):
            return real_draws(real, weights, total, rng)
        split = by_weight(self.synthetic_weight, counted) if self.synthetic_share is None else by_share(self.synthetic_share)
        return mixed_draws(real, synthetic, weights, split, total, rng)

    @property
    def _evenly(self) -> bool:
        weights = list((self.weights or {}).values())
        alike = self.synthetic_weight == 1 and int(self.counted.sum()) == len(self.synthetic)
        return self.synthetic_share is None and alike and (not weights or max(weights) - min(weights) < 1e-5)

    def sampler(self, epochs: int | None = None, *, real_only_last: int | None = None) -> "EpochSampler":
        """A torch sampler over `dataset()`; call its `set_epoch` before each epoch.

        Args:
            epochs: how many there will be; needed for last epochs on real rows alone.
            real_only_last: epochs at the end that see real rows alone; None: the recommended share of `epochs`.
        """
        if real_only_last is None:
            real_only_last = round(self.real_only_share * epochs) if epochs is not None else 0
        if real_only_last and epochs is None:
            raise ConfigError("real_only_last needs epochs: how many there will be")
        return EpochSampler(self, None if epochs is None else epochs - real_only_last)

    def loader(self, batch_size: int, *, epoch: int = 0, real_only: bool = False, transform: Transform = to_float,
               **options: Any) -> "DataLoader[tuple[Any, int]]":
        """A torch DataLoader of one epoch: (images (n, C, H, W), labels int64 (n,)).

        Args:
            options: for `DataLoader`: num_workers, pin_memory, …
        """
        order = self.order(epoch, real_only=real_only).tolist()
        return DataLoader(self.dataset(transform), batch_size=batch_size, sampler=order, **options)

    def huggingface(self, epoch: int | None = 0) -> "datasets.Dataset":
        """A Hugging Face dataset with the columns image, label, synthetic.

        Args:
            epoch: in whose order and mix; None: each row once, which may be many more synthetic ones than the mix has.
        """
        import datasets

        from pipeline.shards.png_encoding import encode_pngs

        rows = self.real.joined(self.synthetic)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(self.classes)),
                                      "synthetic": datasets.Value("bool")})
        columns = {"image": [{"bytes": png, "path": None} for png in encode_pngs(rows.images.numpy())],
                   "label": rows.labels.tolist(), "synthetic": self._made().tolist()}
        made = datasets.Dataset.from_dict(columns, features)
        return made if epoch is None else made.select(self.order(epoch).tolist())

    def ray(self, epoch: int | None = 0) -> "ray.data.Dataset":
        """A Ray Data dataset with the columns image (uint8 C, H, W), label, synthetic; rows as in `huggingface`."""
        import pyarrow as pa
        import ray.data

        rows = self.real.joined(self.synthetic)
        order = torch.arange(len(self)) if epoch is None else self.order(epoch)
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows.images[order].numpy()))
        return ray.data.from_arrow(pa.table({"image": images, "label": rows.labels[order].numpy(),
                                             "synthetic": self._made()[order].numpy()}))

    def _made(self) -> Tensor:
        return torch.arange(len(self)) >= len(self.real)


class MixedImages(Dataset[tuple[Any, int]]):
    """Real rows, then synthetic ones: (transformed image, label)."""

    def __init__(self, rows: Rows, real: int, transform: Transform) -> None:
        self.rows, self.real, self.transform = rows, real, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(self.rows.images[i]), int(self.rows.labels[i])

    def is_synthetic(self, i: int) -> bool:
        """Whether row `i` was generated."""
        return i >= self.real


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch after the other; the same for the same seed and epoch."""

    def __init__(self, feed: Feed, first_real_only: int | None) -> None:
        self._feed, self._first_real_only, self._epoch = feed, first_real_only, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration draws, from 0."""
        self._epoch = epoch

    @property
    def _real_only(self) -> bool:
        return self._first_real_only is not None and self._epoch >= self._first_real_only

    def __iter__(self) -> Iterator[int]:
        return iter(self._feed.order(self._epoch, real_only=self._real_only).tolist())

    def __len__(self) -> int:
        return len(self._feed.real) + (0 if self._real_only else int(self._feed.counted.sum()))


def read_rows(folder: Store, content: Mapping[str, Any], wanted: np.ndarray, shape: tuple[int, ...]) -> Rows:
    """The first `wanted[c]` synthetic rows of each class c in the order of their shards, or all where there are fewer.

    Args:
        folder: a version's; content: its manifest.
        shape: (C, H, W) of an image.

    Raises:
        CorruptShard: an object can't be read as what the manifest says.
    """
    left = wanted.copy()
    images, labels = [], []
    for label, png in _rows(folder, content, left):
        if left[label] > 0:
            left[label] -= 1
            images.append(decode(png, shape[0]))
            labels.append(label)
    if not images:
        return Rows(torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return Rows(torch.from_numpy(np.stack(images)), torch.tensor(labels))


def _rows(folder: Store, content: Mapping[str, Any], left: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """(label, PNG), shard by shard; shards without a row of a class that is still wanted aren't fetched."""
    number = {name: i for i, name in enumerate(content["classes"])}
    for entry in manifest.shards(content, folder):
        held = [number[name] for name, count in entry["rows_per_class"].items() if count]
        if not any(left[label] > 0 for label in held):
            continue
        data = folder.get(entry["key"])
        if content["format"] == "png":
            yield held[0], data
            continue
        try:
            for label, _, png in rows_of(content["format"], data):
                if png is not None:
                    yield label, png
        except (ValueError, KeyError, TypeError, IndexError, OSError) as e:
            raise CorruptShard(f"{folder.where(entry['key'])} can't be read as {content['format']}: {e}") from e
