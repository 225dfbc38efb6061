"""The convolutions next to the image against torch's own: values, derivatives, and derivatives of derivatives."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gan.networks import build, image_side
from gan.networks.image_side import ImageConv2d, ImageConvTranspose2d, conv2d
from gan.presets import Budget, choose

KERNELS = [3, 4, 5]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sides of the kernels that were computed for whole cells."""
    seen: list[int] = []
    usual = image_side._for_cells

    def noted(weight: Tensor) -> Tensor:
        seen.append(weight.shape[2])
        return usual(weight)

    monkeypatch.setattr(image_side, "_for_cells", noted)
    yield seen


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("side", KERNELS)
@pytest.mark.parametrize(("channels", "height"), [(1, 8), (3, 6)])
def test_a_convolution_from_an_image_and_its_derivatives(side: int, channels: int, height: int, quick: list[int]) -> None:
    x, weight, bias = drawn(2, channels, height, 10), drawn(5, channels, side, side), drawn(5)
    padding = (side - 1) // 2
    ours, theirs = conv2d(x, weight, bias, (2, 2), (padding, padding)), F.conv2d(x, weight, bias, 2, padding)
    assert torch.equal(ours, theirs) and ours.shape == (2, 5, height // 2, 5)
    gradient = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, (x, weight, bias), gradient), torch.autograd.grad(theirs, (x, weight, bias), gradient)):
        torch.testing.assert_close(a, b)
    assert quick == [side]
    small = (drawn(1, channels, 4, 4), drawn(2, channels, side, side), drawn(2))
    assert torch.autograd.gradgradcheck(lambda x, w, b: conv2d(x, w, b, (2, 2), (padding, padding)).tanh(), small)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transposed_convolution_to_an_image_and_its_derivatives(channels: int, quick: list[int]) -> None:
    layer = ImageConvTranspose2d(6, channels, 4, 2, 1).double()
    x = drawn(2, 6, 5, 3)
    ours, theirs = layer(x), F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    wanted = (x, layer.weight, layer.bias)
    for a, b in zip(torch.autograd.grad(ours, wanted, gradient), torch.autograd.grad(theirs, wanted, gradient)):
        torch.testing.assert_close(a, b)
    assert quick == [4]
    small = (drawn(1, 2, 2, 2), drawn(2, channels, 4, 4))
    assert torch.autograd.gradgradcheck(lambda x, w: image_side._Up.apply(x, w).tanh(), small)


def test_what_is_not_covered_is_torchs_own(quick: list[int]) -> None:
    """Many channels, another stride, odd sides, or no derivative asked for."""
    for shape, weight, stride, padding in [((1, 4, 8, 8), (2, 4, 4, 4), 2, 1), ((1, 1, 8, 8), (2, 1, 3, 3), 1, 1),
                                           ((1, 1, 7, 8), (2, 1, 3, 3), 2, 1), ((1, 1, 8, 8), (2, 1, 4, 4), 2, 0)]:
        x, w = drawn(*shape), drawn(*weight)
        ours, theirs = conv2d(x, w, None, (stride, stride), (padding, padding)), F.conv2d(x, w, None, stride, padding)
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x))
    ImageConv2d(1, 2, 4, 2, 1)(torch.randn(1, 1, 8, 8)).sum().backward()
    wide = ImageConvTranspose2d(2, 4, 4, 2, 1)
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(wide(x), F.conv_transpose2d(x, wide.weight, wide.bias, 2, 1))
    assert quick == []


def test_under_autocast_it_computes_in_bf16_and_hands_on_float32_gradients(quick: list[int]) -> None:
    x, layer = drawn(4, 1, 8, 8, dtype=torch.float32), ImageConv2d(1, 3, 4, 2, 1)
    exact, = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias, 2, 1).square().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    of_x, of_weight = torch.autograd.grad(out.float().square().sum(), (x, layer.weight))
    assert of_x.dtype == of_weight.dtype == torch.float32 and quick == [4]
    torch.testing.assert_close(of_x, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("resolution", "channels"), [(32, 1), (28, 1), (32, 3)])
def test_the_default_pair_takes_it_three_times_a_turn_of_the_generator(resolution: int, channels: int, quick: list[int],
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """For the image itself, and for what the critic and the frozen features hand back to it; the same as without but for rounding."""
    spec, _, _ = choose("auto", resolution, channels, [5000] * 3, Budget(seconds=60))
    g, d = build(spec, 0)
    z, y = torch.randn(4, g.z_dim), torch.tensor([0, 1, 2, 0])

    def gradients() -> list[Tensor]:
        g.zero_grad()
        d.eval()(g(z, y), y).sum().backward()
        return [p.grad.clone() for p in g.parameters() if p.grad is not None]

    ours = gradients()
    assert sorted(quick) == [4, 4, 5]
    monkeypatch.setattr(image_side, "FEW", 0)
    for a, b in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert len(quick) == 3
