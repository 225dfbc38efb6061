"""The smooth convolution equals PyTorch's, and so do its first and second derivatives."""

import pytest
import torch
from torch import Tensor, nn

from gan.networks.smooth import SmoothConv
from gan.penalties import squared_gradient_norm


def pair(groups: int, dtype: torch.dtype = torch.float64, kernel: int = 3, inner: int = 8) -> tuple[SmoothConv, nn.Conv2d]:
    """Ours and PyTorch's, with the same weight."""
    torch.manual_seed(0)
    ours = SmoothConv(inner, 8, kernel, groups).to(dtype)
    theirs = nn.Conv2d(inner, 8, kernel, padding=kernel // 2, groups=groups, bias=False).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("groups, kernel, inner", [(2, 3, 8), (4, 3, 8), (8, 3, 8), (1, 1, 8), (1, 1, 3), (1, 3, 5), (2, 1, 4)])
def test_derivatives_of_both_orders_by_finite_differences(groups: int, kernel: int, inner: int) -> None:
    ours, _ = pair(groups, kernel=kernel, inner=inner)
    x = torch.randn(2, inner, 4, 4, dtype=torch.float64, requires_grad=True)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(ours, {"weight": weight}, (x,))  # type: ignore[no-any-return]

    weight = ours.weight.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_penalty_s_gradient_is_that_of_pytorch_s_own(layout: torch.memory_format) -> None:
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64).contiguous(memory_format=layout)
    gradients = []
    for conv in pair(4):
        torch.manual_seed(1)
        net = nn.Sequential(conv, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 1, dtype=torch.float64))
        norm = squared_gradient_norm(lambda images, net=net: net(images).squeeze(1), x)  # type: ignore[misc]
        (norm.mean() + net(x).square().mean()).backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)


def test_autocast_asks_the_same_of_it() -> None:
    ours, theirs = pair(4, torch.float32)
    x = torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == theirs(x).dtype == torch.bfloat16
        assert torch.equal(ours(x), theirs(x))
    assert ours(x).dtype == torch.float32 and torch.equal(ours(x), theirs(x))


def test_second_derivatives_do_not_run_through_the_groups_one_by_one() -> None:
    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += "convolution" in str(func)
            return func(*args, **(kwargs or {}))

    counted = []
    for groups in (2, 8):
        ours, _ = pair(groups)
        with Count() as count:
            squared_gradient_norm(lambda images, net=ours: net(images).square().sum((1, 2, 3)), torch.randn(  # type: ignore[misc]
                2, 8, 4, 4, dtype=torch.float64)).mean().backward()
        counted.append(count.calls)
    assert counted[0] == counted[1] <= 8


def test_second_derivatives_have_no_kernel_as_large_as_the_image() -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        side = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.convolution.default:
                self.side = max(self.side, args[1].shape[-1])
            return func(*args, **(kwargs or {}))

    sides = []
    for conv in pair(1, kernel=1):
        with Largest() as largest:
            squared_gradient_norm(lambda images, net=conv: net(images).square().sum((1, 2, 3)), torch.randn(  # type: ignore[misc]
                2, 8, 6, 6, dtype=torch.float64)).mean().backward()
        sides.append(largest.side)
    assert sides == [1, 6]                           # PyTorch's own has one: the control
