"""Losses against their analytic values and finite differences."""

import math

import pytest
import torch
from torch import Tensor

from gan.errors import BadRecipe
from gan.losses import LOSSES, loss_by_name

REAL = torch.tensor([0.3, -1.2, 2.5, 0.0], dtype=torch.float64)
FAKE = torch.tensor([-0.7, 0.4, 1.9, -3.0], dtype=torch.float64)


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-x)))


D_FORMULAS = {
    "minimax": lambda r, f: -(log_sigmoid(r).mean() + torch.log(1 - torch.sigmoid(f)).mean()),
    "nonsaturating": lambda r, f: -(log_sigmoid(r).mean() + torch.log(1 - torch.sigmoid(f)).mean()),
    "hinge": lambda r, f: (1 - r).clamp_min(0).mean() + (1 + f).clamp_min(0).mean(),
    "wasserstein": lambda r, f: f.mean() - r.mean(),
    "relativistic": lambda r, f: -log_sigmoid(r - f).mean(),
}
G_FORMULAS = {
    "minimax": lambda r, f: torch.log(1 - torch.sigmoid(f)).mean(),
    "nonsaturating": lambda r, f: -log_sigmoid(f).mean(),
    "hinge": lambda r, f: -f.mean(),
    "wasserstein": lambda r, f: -f.mean(),
    "relativistic": lambda r, f: -log_sigmoid(f - r).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_follow_the_papers(name: str) -> None:
    loss = loss_by_name(name)
    torch.testing.assert_close(loss.discriminator(REAL, FAKE), D_FORMULAS[name](REAL, FAKE))
    torch.testing.assert_close(loss.for_generator(REAL, FAKE), G_FORMULAS[name](REAL, FAKE))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    loss = loss_by_name(name)
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda f: loss.for_generator(REAL, f), (fake,))


def test_value_at_the_optimum_is_log_4() -> None:
    undecided = torch.zeros(7)
    assert LOSSES["nonsaturating"].discriminator(undecided, undecided).item() == pytest.approx(math.log(4))
    assert LOSSES["relativistic"].discriminator(undecided, undecided).item() == pytest.approx(math.log(2))


def test_saturating_generator_has_no_gradient_where_d_is_sure() -> None:
    sure = torch.tensor([-30.0], requires_grad=True)
    (saturating,) = torch.autograd.grad(LOSSES["minimax"].for_generator(None, sure), sure)
    (steep,) = torch.autograd.grad(LOSSES["nonsaturating"].for_generator(None, sure), sure)
    assert abs(saturating.item()) < 1e-12
    assert steep.item() == pytest.approx(-1.0)


def test_extreme_logits_stay_finite() -> None:
    huge = torch.tensor([1e4, -1e4])
    for name in LOSSES:
        assert torch.isfinite(LOSSES[name].discriminator(huge, -huge))
        assert torch.isfinite(LOSSES[name].for_generator(huge, -huge))


def test_unknown_loss_is_named() -> None:
    with pytest.raises(BadRecipe, match="lsgan"):
        loss_by_name("lsgan")
