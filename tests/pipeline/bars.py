"""A toy dataset of bright bars, the bench of a lift trial on it, and two generators whose worth is known."""

import numpy as np
import torch
from torch import Tensor

from gan.classical import ClassicalAugment
from pipeline.lift import Bench, Rows, Schedule

SIDE = 8


def bars(labels: Tensor, seed: int, noise: float = 60.0) -> Tensor:
    """A toy dataset, uint8 (n, 1, 8, 8): class c is a bright bar in row 2c + 1, in noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(labels), 1, SIDE, SIDE, generator=generator) * noise + 60
    images[torch.arange(len(labels)), 0, 2 * labels + 1] += 70
    return images.clamp(0, 255).to(torch.uint8)


def rows(counts: list[int], seed: int) -> Rows:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Rows(bars(labels, seed), labels)


def bench(train: list[int], held_out: int = 40, steps: int = 40) -> Bench:
    classes = len(train)
    return Bench(
        rows(train, 1), rows([held_out] * classes, 2), rows([held_out] * classes, 3), rows([30] * classes, 4),
        tuple("abcd"[:classes]), ClassicalAugment(shift=0.0, rotate_deg=0, scale=0, shear_deg=0), Schedule(steps, 32, 8),
    )


def oracle(labels: np.ndarray, seeds: np.ndarray) -> Tensor:
    """A perfect generator: fresh draws of the very distribution."""
    return torch.cat([bars(torch.tensor([label]), int(seed) % 2**31) for label, seed in zip(labels, seeds)])


def noise(labels: np.ndarray, seeds: np.ndarray) -> Tensor:
    """A useless generator: every class looks like another one."""
    return oracle((labels + 1) % 3, seeds)
