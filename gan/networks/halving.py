"""Half the side by the filter [1, 3, 3, 1]/8, differentiable any number of times without leaving the images' memory layout.

Written with slices alone, autograd's own derivative fills a tensor of zeros for each of them and hands on gradients with channels first,
which the convolutions before it then have to turn around. The filter H is linear, so its derivative is its transpose Hᵀ, and
that one's is H.
"""

from typing import Any

import torch
from torch import Tensor


def halve(x: Tensor) -> Tensor:
    """(n, C, s, s) → (n, C, s/2, s/2), s even, the border repeated.

    In each direction out[i] = (x[2i-1] + 3·x[2i] + 3·x[2i+1] + x[2i+2]) / 8.
    """
    result: Tensor = _Halve.apply(x)
    return result


class _Halve(torch.autograd.Function):
    """H(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        return _halved(_halved(x, 2), 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result: Tensor = _Spread.apply(gradient, ctx.layout)
        return result


class _Spread(torch.autograd.Function):
    """Hᵀ(g), laid out as H's argument was, whatever way the gradient comes."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, layout: torch.memory_format) -> Tensor:
        return _spread(_spread(g, 3, layout), 2, layout)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor, None]:
        result: Tensor = _Halve.apply(x)
        return result, None


def _halved(x: Tensor, axis: int) -> Tensor:
    even, odd = _pairs(x, axis)
    n = even.shape[axis]
    out = (even + odd).mul_(3)
    _but_first(out, axis).add_(odd.narrow(axis, 0, n - 1))
    out.narrow(axis, 0, 1).add_(even.narrow(axis, 0, 1))
    out.narrow(axis, 0, n - 1).add_(_but_first(even, axis))
    out.narrow(axis, n - 1, 1).add_(odd.narrow(axis, n - 1, 1))
    return out.div_(8)


def _spread(g: Tensor, axis: int, layout: torch.memory_format) -> Tensor:
    n, shape = g.shape[axis], list(g.shape)
    shape[axis] = 2 * n
    out = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=layout)
    even, odd = _pairs(out, axis)
    torch.mul(g, 3, out=even)
    odd.copy_(even)
    _but_first(even, axis).add_(g.narrow(axis, 0, n - 1))
    even.narrow(axis, 0, 1).add_(g.narrow(axis, 0, 1))
    odd.narrow(axis, 0, n - 1).add_(_but_first(g, axis))
    odd.narrow(axis, n - 1, 1).add_(g.narrow(axis, n - 1, 1))
    return out.div_(8)


def _pairs(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Views of the even and the odd positions along an axis."""
    pairs = x.unflatten(axis, (-1, 2))
    return pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)


def _but_first(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 1, x.shape[axis] - 1)
