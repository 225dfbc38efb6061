"""A convolution whose derivatives of every order are convolutions of its own kind.

PyTorch's own second derivative runs through groups one by one, some hundred small kernels for each layer: most of the time of R1 and R2
in R3's networks. Without groups it computes the weight's part as a convolution with batch and channels exchanged, whose
kernel is as large as the image. Convolution C(x, w), its transpose Cᵀ(g, w) and the weight's gradient W(x, g) are bilinear, and
⟨g, C(x, w)⟩ = ⟨Cᵀ(g, w), x⟩ = ⟨W(x, g), w⟩, so each one's derivatives are the other two.
"""

from typing import Any

import torch
from torch import Tensor, nn


class SmoothConv(nn.Conv2d):
    """`nn.Conv2d` of stride 1 and a side that stays, without bias, differentiable any number of times at full speed."""

    def __init__(self, inner: int, outer: int, kernel: int, groups: int = 1) -> None:
        super().__init__(inner, outer, kernel, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C, s, s), in the type that autocast asks of a convolution."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else self.weight.dtype
        result: Tensor = _Convolve.apply(x.to(dtype), self.weight.to(dtype), self.groups)
        return result


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """(Cᵀ(gradient, weight), W(x, gradient)); only the shape of what the wanted one doesn't need is looked at."""
    padding = [weight.shape[2] // 2] * 2
    by_x, by_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, [*wanted, False])
    return by_x, by_weight


class _Convolve(torch.autograd.Function):
    """C(x, w)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return torch.nn.functional.conv2d(x, weight, padding=weight.shape[2] // 2, groups=groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if not torch.is_grad_enabled():              # nobody will differentiate again: both in one call
            wanted = ctx.needs_input_grad[:2]
            found = _backward(gradient, x, weight, ctx.groups, wanted)
            return found[0] if wanted[0] else None, found[1] if wanted[1] else None, None
        by_x = _Transposed.apply(gradient, weight, ctx.groups) if ctx.needs_input_grad[0] else None
        by_weight = _WeightGradient.apply(x, gradient, weight.shape, ctx.groups) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None


class _Transposed(torch.autograd.Function):
    """Cᵀ(g, w)."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.groups = groups
        n, _, *sides = gradient.shape
        last = gradient.is_contiguous(memory_format=torch.channels_last)
        x = torch.empty(n, weight.shape[1] * groups, *sides, dtype=gradient.dtype, device=gradient.device,
                        memory_format=torch.channels_last if last else torch.contiguous_format)
        return _backward(gradient, x, weight, groups, (True, False))[0]

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradient, weight = ctx.saved_tensors
        by_gradient = _Convolve.apply(x, weight, ctx.groups) if ctx.needs_input_grad[0] else None
        by_weight = _WeightGradient.apply(x, gradient, weight.shape, ctx.groups) if ctx.needs_input_grad[1] else None
        return by_gradient, by_weight, None


class _WeightGradient(torch.autograd.Function):
    """W(x, g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor, shape: torch.Size, groups: int) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.groups = groups
        return _backward(gradient, x, x.new_empty(shape), groups, (False, True))[1]

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, gradient = ctx.saved_tensors
        by_x = _Transposed.apply(gradient, weight, ctx.groups) if ctx.needs_input_grad[0] else None
        by_gradient = _Convolve.apply(x, weight, ctx.groups) if ctx.needs_input_grad[1] else None
        return by_x, by_gradient, None, None
