"""Penalties against analytic values, finite differences and each other."""

import pytest
import torch
from torch import Tensor, nn

from gan import penalties
from gan.networks import NetSpec, build
from gan.recipe import Recipe
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
from gan.workers import Workers


def quadratic(x: Tensor) -> Tensor:
    """D(x) = ½‖x‖² + 3·x₀: ∇D = x + 3e₀."""
    flat = x.flatten(1)
    return 0.5 * flat.square().sum(1) + 3 * flat[:, 0]


def test_squared_norm_is_analytic() -> None:
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    wanted = x.flatten(1).clone()
    wanted[:, 0] += 3
    torch.testing.assert_close(penalties.squared_gradient_norm(quadratic, x), wanted.square().sum(1))


def test_penalty_gradient_equals_finite_differences_in_the_weights() -> None:
    torch.manual_seed(0)
    d = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Softplus(), nn.Linear(6, 1)).double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    weight = d[1].weight

    def value(w: Tensor) -> Tensor:
        call = torch.func.functional_call
        return penalties.squared_gradient_norm(lambda i: call(d, {"1.weight": w}, (i,)).squeeze(1), x).mean()

    assert torch.autograd.gradcheck(value, (weight.detach().clone().requires_grad_(),))


def test_directional_estimate_is_unbiased_for_a_linear_score() -> None:
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(16, generator=generator)
    x = torch.randn(20000, 1, 4, 4, generator=generator)
    epsilon = torch.randn(x.shape, generator=generator)
    estimate = penalties.directional_gradient_norm(lambda i: i.flatten(1) @ slope, x, epsilon, 0.01)
    exact = slope.square().sum().item()
    # (ε·s)² has mean ‖s‖² and variance 2‖s‖⁴: five standard errors.
    assert estimate.mean().item() == pytest.approx(exact, abs=5 * exact * (2 / 20000) ** 0.5)


def test_wgan_gp_is_zero_for_unit_slope_and_known_else() -> None:
    slope = torch.zeros(16)
    slope[2] = 1.0
    real, fake, share = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4), torch.rand(6)
    unit = penalties.gradient_penalty(lambda i: i.flatten(1) @ slope, real, fake, share)
    triple = penalties.gradient_penalty(lambda i: i.flatten(1) @ (3 * slope), real, fake, share)
    torch.testing.assert_close(unit, torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(triple, torch.full((6,), 4.0))


def test_wgan_gp_looks_between_real_and_fake() -> None:
    real, fake = torch.full((4, 1, 2, 2), 2.0), torch.full((4, 1, 2, 2), -2.0)
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    # D = ½‖x‖²: ∇D = x̂, four equal pixels, so the norm is 2·|4·share - 2|.
    found = penalties.gradient_penalty(lambda i: 0.5 * i.flatten(1).square().sum(1), real, fake, share)
    torch.testing.assert_close(found, ((4 * share - 2).abs() * 2 - 1).square(), atol=1e-5, rtol=1e-5)


def test_zero_gradient_keeps_wgan_gp_differentiable() -> None:
    weight = torch.zeros(4, requires_grad=True)
    value = penalties.gradient_penalty(lambda i: i.flatten(1) @ weight, torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2),
                                       torch.rand(2)).mean()
    value.backward()
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


def test_clipping_bounds_every_weight() -> None:
    d = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    penalties.clip_weights_(d, 0.01)
    assert max(p.abs().max().item() for p in d.parameters()) <= 0.01 + 1e-9


def r3_penalty(precision: str) -> Tensor:
    """The gradient of R1 and R2 by the weights of a small R3's D, flat, with the penalty's passes in this precision."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(16) % 4
    shape = {"family": "r3", "resolution": 16, "channels": 3, "classes": 4, "width": 8}
    g, d = build(NetSpec.from_dict(shape | {"options": {"group_width": 8}}), 3)
    for stage in d.stages:                           # type: ignore[union-attr]
        nn.init.normal_(stage[0].wide.weight, 0.0, 0.1, generator=generator)
    recipe = Recipe(total_kimg=1.0, batch_size=16, loss="relativistic", r1_gamma=1.0, r2_gamma=1.0, penalty_precision=precision)
    optimizers = [torch.optim.SGD(net.parameters()) for net in (g, d)]
    update = Update(Players(g, d, *optimizers), recipe, Sampler(images, labels, 4, 1.0, 0, 16), Workers(1))
    update.sampler.begin(0)
    x, y = update._real()
    update._penalise(x, torch.randn(x.shape, generator=generator), y, None, Moment(0))
    return torch.cat([p.grad.flatten() for p in d.parameters() if p.grad is not None])


def test_penalties_in_bf16_point_where_those_in_float32_do() -> None:
    exact, rough = r3_penalty("float32"), r3_penalty("bf16")
    assert torch.equal(exact, r3_penalty("float32"))
    assert 1e-4 < float((rough - exact).norm() / exact.norm()) < 0.05      # eight bits of mantissa: it was bf16, and close
    assert torch.isfinite(rough).all()
