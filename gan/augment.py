"""Differentiable augmentation of the discriminator's input, real and generated alike (Zhao 2020; Karras 2020).

The generator must not learn the augmentation, so every transform is drawn per sample with probability p < 1 and only
transforms that the labels bear are allowed: a flipped 6 is no 6. All of geometry is one bilinear resampling.
Random numbers are drawn apart from their use, so that a worker can draw a whole batch's and use its own rows.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gan.affine import affine_grid

MAX_SHIFT = 1 / 8            # of the image's side, whole pixels
MAX_ANGLE = math.radians(10)
MAX_LOG_SCALE = 0.15         # scale in 0.86 … 1.16
COLOUR = 0.3                 # brightness ±0.3 (images span -1 … 1), contrast and saturation × 0.7 … 1.3


@dataclass(frozen=True)
class Augmentation:
    """What the labels bear."""

    translate: bool = True
    geometry: bool = True
    flip: bool = False
    color: bool = False

    @property
    def spatial(self) -> bool:
        """Any transform that moves pixels."""
        return self.translate or self.geometry or self.flip


@dataclass(frozen=True)
class Draw:
    """One augmentation for each of n rows: `matrix` (n, 2, 3) from output to input positions, `tone` (n, 3)."""

    matrix: Tensor | None
    moved: Tensor | None                             # bool (n,): rows whose matrix is not the identity
    tone: Tensor | None                              # brightness added, contrast factor, saturation factor

    def rows(self, index: Tensor | slice) -> "Draw":
        """The draw for these rows alone."""
        return Draw(*(None if t is None else t[index] for t in (self.matrix, self.moved, self.tone)))


def draw(what: Augmentation, n: int, p: float | Tensor, resolution: int, generator: torch.Generator) -> Draw | None:
    """Random augmentations for n rows, each transform with probability p; None where nothing would change for sure."""
    if (not isinstance(p, Tensor) and p <= 0) or not (what.spatial or what.color):
        return None
    numbers = torch.rand(12, n, generator=generator, device=generator.device)
    # Each transform has its own coin; a transform that is not allowed never comes up.
    on = [numbers[i] < (p if allowed else 0.0) for i, allowed in
          enumerate((what.translate, what.geometry, what.flip, what.color))]
    spread = numbers[4:] * 2 - 1                     # uniform in -1 … 1
    matrix = moved = tone = None
    if what.spatial:
        pixels = max(1, round(MAX_SHIFT * resolution)) if what.translate else 0
        shift = (torch.floor(numbers[4:6] * (2 * pixels + 1)) - pixels) * (2 / resolution) * on[0]
        angle, scale = spread[2] * MAX_ANGLE * on[1], torch.exp(spread[3] * MAX_LOG_SCALE * on[1])
        mirror = 1 - 2 * (on[2] & (spread[4] > 0)).float()
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        matrix = torch.stack([torch.stack([cos * mirror, -sin, shift[0]], 1),
                              torch.stack([sin * mirror, cos, shift[1]], 1)], 1)
        moved = (matrix != torch.eye(2, 3, device=matrix.device)).flatten(1).any(1)
    if what.color:
        tone = torch.stack([spread[5] * COLOUR * on[3], *(1 + spread[6:8] * COLOUR * on[3])], 1)
    return Draw(matrix, moved, tone)


def apply(images: Tensor, drawn: Draw | None) -> Tensor:
    """Augmented images (n, C, H, W), same range as given; rows that were not drawn come back bit for bit.

    Beyond the border the nearest pixel goes on, so that neither black nor white backgrounds get a frame.
    """
    if drawn is None:
        return images
    with torch.autocast(images.device.type, enabled=False):
        return _apply(images, drawn)


def _apply(x: Tensor, drawn: Draw) -> Tensor:
    if drawn.matrix is not None and drawn.moved is not None:
        grid = affine_grid(drawn.matrix.to(x.dtype), *x.shape[2:])
        x = torch.where(drawn.moved.view(-1, 1, 1, 1), _Resample.apply(x, grid), x)
    if drawn.tone is not None:
        brightness, contrast, saturation = drawn.tone.to(x.dtype).t()[:, :, None, None, None].unbind(0)
        if x.shape[1] > 1:
            grey = x.mean(1, keepdim=True)
            x = torch.lerp(grey.expand_as(x), x, saturation)
        middle = x.mean((1, 2, 3), keepdim=True)
        x = torch.lerp(middle.expand_as(x), x, contrast) + brightness
    return x


class _Resample(torch.autograd.Function):
    """Bilinear resampling, a linear map A of the image: backward is Aᵀ, and backward of that is A again.

    PyTorch's own has no second derivative, which R1 and R2 through the augmentation need.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, "bilinear", "border", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _ResampleTransposed.apply(gradient, grid, ctx.shape), None


class _ResampleTransposed(torch.autograd.Function):
    """Aᵀ of `_Resample`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        unused = gradient.new_empty(1).expand(shape)  # the kernel reads the image only for the grid's gradient
        result, _ = torch.ops.aten.grid_sampler_2d_backward(gradient, unused, grid, 0, 1, False, (True, False))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Resample.apply(gradient, grid), None, None
