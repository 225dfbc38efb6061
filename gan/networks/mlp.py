"""Multi-layer perceptrons after Goodfellow 2014, conditional after Mirza 2014: two hidden layers in each player.

The label enters as a one-hot vector beside z and beside the pixels. Fast, and as blurred as in 2014.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gan.networks.norm import one_hot
from gan.networks.spec import NetSpec

DEFAULT_WIDTH = 128


def perceptron(sizes: Sequence[int], activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2)) -> nn.Sequential:
    """Linear layers from each size to the next with the activation between them: (n, sizes[0]) → (n, sizes[-1])."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


class Generator(nn.Module):
    """z (n, z_dim), y (n,) → (n, C, H, W) in [-1, 1]."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        width = spec.width or DEFAULT_WIDTH
        self.classes, self.shape = spec.classes, (spec.channels, spec.resolution, spec.resolution)
        self.body = perceptron([spec.z_dim + spec.classes, width, width, math.prod(self.shape)], nn.ReLU)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.body(torch.cat([z, one_hot(y, self.classes, z.dtype)], 1))).view(-1, *self.shape)


class Discriminator(nn.Module):
    """x (n, C, H, W), y (n,) → logits (n,)."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        width = spec.width or DEFAULT_WIDTH
        self.classes = spec.classes
        pixels = spec.channels * spec.resolution**2
        self.body = perceptron([pixels + spec.classes, width, width, 1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.body(torch.cat([flat, one_hot(y, self.classes, flat.dtype)], 1)).squeeze(1)


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    spec.check_options()


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of the family `mlp`."""
    check(spec)
    return Generator(spec), Discriminator(spec)
