"""Regularisers of the discriminator, as pure functions.

`score` is a function from images (n, C, H, W) to logits (n,) that treats rows apart: a discriminator with its labels,
augmentation and everything else bound. Exact penalties differentiate through the gradient, so what lies between
`images` and the logits must be twice differentiable.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]


def squared_gradient_norm(score: Score, images: Tensor) -> Tensor:
    """‖∇ₓD(x)‖² for each row, (n,), in a graph that can be differentiated again.

    R1 is its mean over real images, R2 over generated ones (Mescheder 2018); weight it by γ/2.
    """
    x = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return _wide(gradient).square().flatten(1).sum(1)


def directional_gradient_norm(score: Score, images: Tensor, direction: Tensor, step: float) -> Tensor:
    """((D(x + hε) - D(x)) / h)² for each row, (n,): with ε ~ N(0, I) its mean is ‖∇ₓD(x)‖² as h → 0.

    An estimate of R1/R2 that needs no second derivative: two passes of D in place of a backward of a backward.
    E_ε(ε·∇D)² = ‖∇D‖², variance 2‖∇D‖⁴.
    """
    moved, still = _wide(score(torch.cat([images + step * direction, images]))).chunk(2)
    return ((moved - still) / step).square()


def gradient_penalty(score: Score, real: Tensor, fake: Tensor, epsilon: Tensor) -> Tensor:
    """(‖∇D(x̂)‖ - 1)² for each row, (n,), at x̂ = ε·x + (1 - ε)·G(z), ε ~ U(0, 1) per row (Gulrajani 2017, eq. 3)."""
    share = epsilon.view(-1, *[1] * (real.dim() - 1))
    between = share * real + (1 - share) * fake.detach()
    # The square root has no derivative at 0; 1e-12 keeps it finite there and moves a norm of 1 by 5e-13.
    return ((squared_gradient_norm(score, between) + 1e-12).sqrt() - 1).square()


@torch.no_grad()
def clip_weights_(network: nn.Module, limit: float) -> None:
    """Every parameter into [-limit, limit], in place (Arjovsky 2017, algorithm 1)."""
    torch._foreach_clamp_min_(list(network.parameters()), -limit)
    torch._foreach_clamp_max_(list(network.parameters()), limit)


def _wide(x: Tensor) -> Tensor:
    """x in float32 at least: sums of squares overflow or drown in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
