"""Halving a side: the filter is known from tests/gan/test_networks.py; here its derivatives, and the layout they come in."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gan.networks import NetSpec, build
from gan.networks.halving import halve
from gan.penalties import squared_gradient_norm

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 2, 2, 2), (1, 1, 8, 4)])
def test_derivatives_of_both_orders_by_finite_differences(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_(True)
    assert torch.autograd.gradcheck(halve, (x,))
    assert torch.autograd.gradgradcheck(lambda x: halve(x).square(), (x,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_lies_as_the_images_do(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=layout).requires_grad_(True)
    for other in LAYOUTS:
        (gradient,) = torch.autograd.grad(halve(x), x, torch.randn(2, 3, 4, 4).contiguous(memory_format=other))
        assert gradient.is_contiguous(memory_format=layout)


def test_r3_keeps_channels_last_through_its_penalties() -> None:
    class Turned(TorchDispatchMode):
        """Counts results that are images of eight pixels' side or more with channels first."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            for t in made if isinstance(made, tuple | list) else [made]:
                self.count += (isinstance(t, torch.Tensor) and t.dim() == 4 and t.shape[1] > 4 and t.shape[2] >= 8
                               and t.is_contiguous() and not t.is_contiguous(memory_format=torch.channels_last))
            return made

    spec = NetSpec.from_dict({"family": "r3", "resolution": 32, "channels": 3, "classes": 2, "width": 8, "options": {"group_width": 8}})
    d = build(spec, 0)[1].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for block in (stage[0] for stage in d.stages):   # a block begins as the identity: give its branch a gradient
        torch.nn.init.normal_(block.wide.weight, 0.0, 0.1)
    x, y = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.tensor([0, 1])
    with Turned() as turned:
        squared_gradient_norm(lambda images: d(images, y), x).mean().backward()
    assert turned.count == 0
