"""The convolutions next to the image, which halve and double the side, without what a CPU is slowest at.

A strided convolution's derivative by the image, and a transposed convolution into one, are the same operation. CPU libraries compute it
at a fiftieth of their peak where the image has one channel or three: on two cores the three of a training step took a tenth of
it. For the four pixels of a 2×2 cell at once it is an ordinary 3×3 convolution into four times the channels, whose result is
then laid out (sub-pixel convolution, Shi 2016): about three times as fast, the same but for rounding.
"""

import functools
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 3                                              # channels of an image


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` from an image, of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)


class ImageConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` to an image, of stride 2 and without output padding."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _covered(x, self.weight, self.stride, self.padding) or self.kernel_size[0] != 4:
            return super().forward(x, output_size)
        x, weight, bias = _cast(x, self.weight, self.bias)
        out: Tensor = _Up.apply(x, weight)
        return out if bias is None else out + bias[:, None, None]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
    """`torch.nn.functional.conv2d`, with a quicker derivative by `x` where `x` is an image on a CPU and the stride 2."""
    asked = x.requires_grad and torch.is_grad_enabled()
    if not asked or x.shape[2] % 2 or x.shape[3] % 2 or not _covered(x, weight, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding)
    out: Tensor = _Down.apply(*_cast(x, weight, bias))
    return out


def _covered(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> bool:
    """Few channels, on a CPU, a square kernel that halves the side, or doubles it."""
    side = weight.shape[2]
    return (x.device.type == "cpu" and weight.shape[1] <= FEW and side in (3, 4, 5) and weight.shape[3] == side
            and tuple(stride) == (2, 2) and tuple(padding) == (_padding(side),) * 2)


def _padding(side: int) -> int:
    """That lets a kernel of this side halve an image."""
    return (side - 1) // 2


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As autocast would for a convolution, where it is on: below, all is of one type."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Down(torch.autograd.Function):
    """x (n, C, 2h, 2w), weight (O, C, k, k), bias (O,) or None → (n, O, h, w)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else list(bias.shape)
        return F.conv2d(x, weight, bias, 2, _padding(weight.shape[2]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _Up.apply(gradient, weight) if ctx.needs_input_grad[0] else None
        of_weight, of_bias = _by_weight(x, weight, gradient, ctx.needs_input_grad[1], ctx.bias if ctx.needs_input_grad[2] else None)
        return of_x, of_weight, of_bias


class _Up(torch.autograd.Function):
    """The transpose of `_Down` by its x: x (n, O, h, w), weight (O, C, k, k) → (n, C, 2h, 2w)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _laid_out(F.conv2d(x, _for_cells(weight), padding=1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _Down.apply(gradient, weight, None) if ctx.needs_input_grad[0] else None
        return of_x, _by_weight(gradient, weight, x, ctx.needs_input_grad[1], None)[0]


def _by_weight(image: Tensor, weight: Tensor, gradient: Tensor, asked: bool, bias: list[int] | None) -> tuple[Tensor | None, Tensor | None]:
    """The strided convolution's derivatives by weight and bias, differentiable as torch's own are."""
    if not asked and bias is None:
        return None, None
    padding = [_padding(weight.shape[2])] * 2
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, image, weight, bias, [2, 2], padding, [1, 1], False, [0, 0], 1, [False, asked, bias is not None])
    return of_weight, of_bias


def _for_cells(weight: Tensor) -> Tensor:
    """(O, C, k, k) → (4·C, O, 3, 3): for each pixel of a 2×2 cell and channel, what its own and the eight cells around give to it."""
    outer, channels, side, _ = weight.shape
    taps = F.pad(weight.flatten(2), (0, 1))[:, :, _taps(side)].view(outer, channels, 4, 3, 3)
    return taps.permute(2, 1, 0, 3, 4).reshape(4 * channels, outer, 3, 3).contiguous(memory_format=torch.channels_last)


def _laid_out(cells: Tensor) -> Tensor:
    """Pixels of a cell and their channels (n, 4·C, h, w) → (n, C, 2h, 2w), channels_last as they should come; torch's own way of it
    (`pixel_shuffle`) takes twice as long.
    """
    rows = cells.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5)
    return rows.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


@functools.cache
def _taps(side: int) -> Tensor:
    """Which of a kernel's k·k numbers goes where, int64 (36,): by row and column in the cell, then cell above … below; k·k: none.

    Pixel 2i + r takes from cell i + d what the kernel has at r − 2d + padding.
    """
    out = []
    for row, column, down, right in product((0, 1), (0, 1), (-1, 0, 1), (-1, 0, 1)):
        at = (row - 2 * down + _padding(side), column - 2 * right + _padding(side))
        out.append(at[0] * side + at[1] if min(at) >= 0 and max(at) < side else side * side)
    return torch.tensor(out)
