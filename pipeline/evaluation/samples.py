"""The generated images that are judged: how many of each class, and what the networks see in them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan.classifier import embed, predict
from gan.metrics.memorisation import Memorisation
from pipeline.evaluation.data import Seen
from pipeline.evaluation.networks import Networks
from pipeline.grids import tile_grid
from pipeline.lift import Draw
from pipeline.seeds import derive, row_seeds

LEAST_PER_CLASS = 50                                 # samples of a class, however rare it is in the test images
CHUNK = 1024                                         # generated images in memory at a time


def sample_counts(test: np.ndarray, train: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each class: (in the proportion of the test images, the same but at least fifty of each class).

    The first are what is compared with the test images as a whole, the second serve the figures by class.

    Args:
        test, train: rows by class, int64 (classes,).
    """
    share = test if test.sum() else train
    exact = samples * share / share.sum()
    prior = np.floor(exact).astype(np.int64)
    prior[np.argsort(prior - exact, kind="stable")[: samples - prior.sum()]] += 1
    present = train > 0
    least = min(LEAST_PER_CLASS, max(2, samples // max(1, int(present.sum()))))
    return prior, np.where(present, np.maximum(prior, least), 0)


@dataclass(frozen=True)
class Samples:
    """Generated images as the networks see them. The images themselves aren't kept: their seeds make them again."""

    seen: Seen
    logits: Tensor | None                            # the judge's, float32 (n, classes)
    latents: np.ndarray                              # int64 (n,)

    @property
    def labels(self) -> Tensor:
        """Asked for, int64 (n,)."""
        return self.seen.labels


def look_at_samples(draw: Draw, counts: np.ndarray, networks: Networks, seed: int) -> Samples:
    """`counts[c]` images of each class c, class by class; other ones than those that will be published."""
    labels = np.repeat(np.arange(len(counts)), counts)
    latents = np.concatenate([row_seeds(derive(seed, "evaluate"), c, 0, int(n)) for c, n in enumerate(counts)])
    features, logits = [], []
    for first in range(0, len(labels), CHUNK):
        part = slice(first, first + CHUNK)
        images = draw(labels[part], latents[part])
        features.append(embed(networks.extractor, images)[0])
        if networks.judge is not None:
            logits.append(predict(networks.judge, images))
    seen = Seen(torch.cat(features), torch.from_numpy(labels))
    return Samples(seen, torch.cat(logits) if logits else None, latents)


def first_of_each(labels: Tensor, counts: np.ndarray) -> Tensor:
    """Mask of the first `counts[c]` rows of each class c."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        mask[torch.nonzero(labels == label)[:count, 0]] = True
    return mask


def nearest_pairs(draw: Draw, samples: Samples, rows: Tensor, train: Tensor, memory: Memorisation) -> bytes:
    """PNG of the nearest pairs, nearest first: a generated image, then its training image, five pairs a row.

    Args:
        rows: numbers of the samples that `memory` compared, int64 (m,).
    """
    chosen = rows[[i for i, _, _ in memory.pairs]].numpy()
    generated = draw(samples.labels.numpy()[chosen], samples.latents[chosen])
    pictures = [image for one, (_, row, _) in zip(generated, memory.pairs) for image in (one, train[row])]
    return tile_grid(torch.stack(pictures).numpy(), columns=10)
