"""What two workers make of halves of a batch is what one makes of the whole: batch norm, its derivatives, and the mean gradient."""

import copy
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.networks.norm import BatchNorm, share_statistics
from gan.workers import Workers


class Meeting:
    """Where workers that are threads add up."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier, self.brought = world, threading.Barrier(world), dict[int, Tensor]()

    def add_up(self, rank: int, x: Tensor) -> None:
        self.brought[rank] = x.clone()
        self.barrier.wait(30)
        x.copy_(sum((self.brought[r] for r in range(1, self.world)), self.brought[0]))
        self.barrier.wait(30)


class Threads(Workers):
    """One of them."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.world, self.rank, self.memory, self.meeting = meeting.world, rank, None, meeting

    def sum_(self, x: Tensor) -> None:
        self.meeting.add_up(self.rank, x)


def side_by_side(world: int, work: Any) -> list[Any]:
    """What `work(workers, rank)` returns on each of them."""
    meeting = Meeting(world)
    with ThreadPoolExecutor(world) as pool:
        return [f.result(60) for f in [pool.submit(work, Threads(meeting, rank), rank) for rank in range(world)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 5, 4, 6), (12, 5)])
@pytest.mark.parametrize("classes", [1, 3])
def test_shared_batch_norm_is_that_of_the_whole_batch(shape: tuple[int, ...], classes: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 + 2).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    y, weights = torch.arange(12) % classes, torch.randn(shape)
    gain, bias = torch.rand(classes, 5) + 0.5, torch.randn(classes, 5)

    def norm() -> BatchNorm:
        made = BatchNorm(5, classes)
        made.load_state_dict({**made.state_dict(), "gain": gain, "bias": bias})
        return made

    def part(workers: Threads, rank: int) -> tuple[Tensor, Tensor | None, BatchNorm]:
        ours, rows = norm(), slice(rank * 4, rank * 4 + 4)
        share_statistics(ours, workers)
        mine = x[rows].detach().requires_grad_(True)
        out = ours(mine, y[rows])
        (out.float() * weights[rows]).sum().backward()
        return out.detach(), mine.grad, ours

    found = side_by_side(3, part)
    whole, alone = x.float().detach().requires_grad_(True), norm()
    wanted = alone(whole, y)
    (wanted * weights).sum().backward()
    exact = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(torch.cat([out for out, _, _ in found]).float(), wanted, **exact)
    torch.testing.assert_close(torch.cat([by_x for _, by_x, _ in found]).float(), whole.grad, **exact)
    for name in ("gain", "bias"):
        both = sum(getattr(ours, name).grad for *_, ours in found)
        torch.testing.assert_close(both, getattr(alone, name).grad, rtol=exact["rtol"], atol=20 * exact["atol"])
    for *_, ours in found:
        torch.testing.assert_close(ours.mean, alone.mean)
        torch.testing.assert_close(ours.variance, alone.variance, rtol=1e-4, atol=1e-5)


def test_a_derivative_of_the_derivative_is_refused_rather_than_wrong() -> None:
    def part(workers: Threads, rank: int) -> str:
        ours = BatchNorm(2)
        share_statistics(ours, workers)
        x = torch.randn(4, 2, 2, 2, requires_grad=True)
        (by_x,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            by_x.square().sum().backward()
        return "refused"

    assert side_by_side(2, part) == ["refused", "refused"]


def test_the_mean_gradient_lies_in_memory_as_its_parameter_does() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, (3, 2)), nn.Flatten(), nn.Linear(8, 2))
    original = original.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network, x = functools.partial(copy.deepcopy, original), torch.randn(6, 3, 6, 5)

    def part(workers: Threads, rank: int) -> tuple[list[Tensor | None], Tensor]:
        net = network()
        F.gelu(net(x[rank * 3: rank * 3 + 3])).mean().backward()
        if rank:                                     # a gradient that came out in another order, and one that is not there
            first, last = net[0].weight, net[3].bias  # type: ignore[index]
            first.grad = first.grad.contiguous()
            last.grad = None
        figures = workers.average_(net, torch.tensor([float(rank), 1.0]))
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in net.parameters())
        return [p.grad for p in net.parameters()], figures

    (first, figures), (second, _) = side_by_side(2, part)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(first, second)) and figures.tolist() == [0.5, 1.0]
    whole = network()
    F.gelu(whole(x)).mean().backward()
    wanted = [p.grad for p in whole.parameters()]
    for found, expected in list(zip(first, wanted))[:-1]:
        torch.testing.assert_close(found, expected)
    alone = network()
    F.gelu(alone(x[:3])).mean().backward()
    torch.testing.assert_close(first[-1], alone[3].bias.grad / 2)  # type: ignore[index]
