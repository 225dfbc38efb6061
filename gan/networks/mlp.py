"""Multi-layer perceptrons after Goodfellow 2014, conditional after Mirza 2014: two hidden layers in each player.

The label enters as a one-hot vector beside z and beside the pixels. Fast, and as blurred as in 2014.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.networks.spec import NetSpec

DEFAULT_WIDTH = 128


class Generator(nn.Module):
    """z (n, z_dim), y (n,) → (n, C, H, W) in [-1, 1]."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        width = spec.width or DEFAULT_WIDTH
        self.classes, self.shape = spec.classes, (spec.channels, spec.resolution, spec.resolution)
        self.body = nn.Sequential(
            nn.Linear(spec.z_dim + spec.classes, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, math.prod(self.shape)), nn.Tanh(),
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.body(torch.cat([z, F.one_hot(y, self.classes).to(z)], 1)).view(-1, *self.shape)


class Discriminator(nn.Module):
    """x (n, C, H, W), y (n,) → logits (n,)."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        width = spec.width or DEFAULT_WIDTH
        self.classes = spec.classes
        pixels = spec.channels * spec.resolution**2
        self.body = nn.Sequential(
            nn.Linear(pixels + spec.classes, width), nn.LeakyReLU(0.2),
            nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.body(torch.cat([flat, F.one_hot(y, self.classes).to(flat)], 1)).squeeze(1)


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    spec.check_options()


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of the family `mlp`."""
    check(spec)
    return Generator(spec), Discriminator(spec)
