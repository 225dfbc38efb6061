"""The generated images that are judged: how many of each class, and what the networks see in them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan.classifier import embed, predict
from gan.metrics.memorisation import Memorisation
from gan.sampling import redraw_seeds
from pipeline.evaluation.data import Seen
from pipeline.evaluation.networks import Networks
from pipeline.grids import tile_grid
from pipeline.lift import Draw, Keep
from pipeline.seeds import derive, row_seeds

LEAST_PER_CLASS = 50                                 # samples of a class, however rare it is in the test images
CHUNK = 1024                                         # generated images in memory at a time
REDRAWS = 20                                         # of a sample that the filter rejects; then it stays


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


def passing(draw: Draw, keep: Keep | None) -> Draw:
    """`draw`, but that what a filter rejects is drawn again, as it is in sampling: judged is what would be published.

    A sample still follows from its label and latent seed. After `REDRAWS` rejections it stays as it is: whether a class can be filled at
    all is the lift trial's word and sampling's.

    Args:
        keep: which images pass; None: all.
    """
    if keep is None:
        return draw

    def images(labels: np.ndarray, latents: np.ndarray) -> Tensor:
        made, again = draw(labels, latents), np.arange(len(labels))
        for attempt in range(1, REDRAWS + 1):
            again = again[~keep(made[again], torch.from_numpy(labels[again])).numpy()]
            if not len(again):
                break
            made[again] = draw(labels[again], redraw_seeds(latents[again], attempt))
        return made

    return images


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
