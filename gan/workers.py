"""What several workers of one training tell each other: sums of gradients, of statistics, and of small figures.

Workers that train on CPUs of one machine add up in memory that they share, which takes some ten microseconds where gloo's
sockets take milliseconds: a step of a small network needs half a dozen such sums. All others go through
`torch.distributed`, which must be initialised in any case.
"""

import contextlib
import mmap
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

CHUNK = 1 << 18              # float32 numbers added at once: 1 MiB, which a core's cache holds
LINE = 8                     # int64 numbers from one worker's counter to the next: a cache line of its own each
SPINS = 20_000               # looks before a waiting worker lets others have its CPU: some milliseconds
YIELDS = 2_000
NAP_S = 2e-4
GONE_EVERY_S = 1.0           # how often a napping worker looks whether the other still lives
IN_ORDER = {"x86_64", "AMD64"}      # others see a worker's counter before its numbers, without a barrier that Python doesn't give
PATIENCE_S = 1800.0          # as torch.distributed's own

_KERNELS = torch.library.Library("ganmill", "DEF")
_KERNELS.define("add_up_over_workers_(Tensor(a!) x) -> ()")
_KERNELS.impl("add_up_over_workers_", lambda x: _ADDING[-1].add_up(x), "CPU")
_ADDING: list["Workers"] = []
ADDED = torch.ops.ganmill.add_up_over_workers_.default           # the sum as one of torch's kernels, see `Workers.adding_by_kernel`


class Workers:
    """The workers of a training; alone where `world` is 1."""

    def __init__(self, world: int, rank: int = 0, device: str | torch.device = "cpu") -> None:
        self.world, self.rank = world, rank
        here = world > 1 and torch.device(device).type == "cpu"
        self.memory = meet(world, rank) if here else None
        self.adds_by_kernel = False

    def sum_(self, x: Tensor) -> None:
        """x becomes its sum over the workers, the same bits on each of them."""
        if self.adds_by_kernel:
            ADDED(x)
        else:
            self.add_up(x)

    def add_up(self, x: Tensor) -> None:
        """The same, at once."""
        if self.memory is not None and x.dtype == torch.float32 and x.is_contiguous():
            self.memory.sum_(x.view(-1))
        else:
            dist.all_reduce(x)

    @contextlib.contextmanager
    def adding_by_kernel(self) -> Iterator[None]:
        """Sums are kernels inside, so that a trace shows them; for one `Workers` of a process at a time."""
        _ADDING.append(self)
        self.adds_by_kernel = True
        try:
            yield
        finally:
            self.adds_by_kernel = False
            _ADDING.remove(self)

    @contextlib.contextmanager
    def one_for_all(self) -> Iterator[None]:
        """What rank 0 does inside while the others wait for it may have their threads too, where they share a machine."""
        own = torch.get_num_threads()
        if self.memory is not None and self.rank == 0:
            torch.set_num_threads(own * self.world)
        try:
            yield
        finally:
            torch.set_num_threads(own)

    def average_(self, network: nn.Module, figures: Tensor) -> Tensor:
        """Gradients of `network` become their mean over workers, in place; returns the mean of `figures` (k,).

        One collective operation: all gradients in one flat buffer, which equals the gradient of the whole batch's
        mean loss because every worker holds equally many rows.
        """
        if self.world == 1:
            return figures
        learning = [p for p in network.parameters() if p.requires_grad]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learning]
        flat = torch.cat([*(_in_order_of(p, g).reshape(-1).float() for p, g in zip(learning, gradients)), figures])
        self.sum_(flat)
        flat /= self.world
        parts = flat.split([p.numel() for p in learning] + [len(figures)])
        for parameter, part in zip(learning, parts):     # views: what was added up is not copied back
            parameter.grad = _out_of_order(parameter, part).to(parameter.dtype)
        return parts[-1]


def _in_order_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with axes as they follow each other in the parameter's memory: flattened without a copy where its own is alike."""
    return gradient.permute(0, 2, 3, 1) if _is_channels_last(parameter) else gradient


def _out_of_order(parameter: Tensor, flat: Tensor) -> Tensor:
    """A flat gradient (n,) in that order as a view like the parameter, in memory too."""
    if not _is_channels_last(parameter):
        return flat.view(parameter.shape)
    n, c, height, width = parameter.shape
    return flat.view(n, height, width, c).permute(0, 3, 1, 2)


def _is_channels_last(parameter: Tensor) -> bool:
    return parameter.dim() == 4 and not parameter.is_contiguous() and parameter.is_contiguous(memory_format=torch.channels_last)


class SharedMemory:
    """Sums through a file that all workers have mapped; it has no name any more and ends with them.

    Each worker writes its numbers into a row of its own and raises its counter; when all counters stand as high, each adds the
    rows in the order of ranks. Two sets of rows in turn: whoever writes a set knows by the counters that all have read it.

    Raises:
        RuntimeError: in `sum_`, another worker has ended or did not come for half an hour.
    """

    def __init__(self, path: Path, world: int, rank: int, pids: list[int]) -> None:
        self.world, self.rank, self.pids, self.turn = world, rank, pids, 0
        with path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), file_bytes(world))
        whole = memoryview(mapped)
        self.counters = whole[: 8 * LINE * world].cast("q")
        self.rows = torch.frombuffer(whole, dtype=torch.float32, offset=8 * LINE * world).view(2, world, CHUNK)

    def sum_(self, x: Tensor) -> None:
        """x (n,) float32 becomes its sum over the workers."""
        for part in x.split(CHUNK):
            self.turn += 1
            rows = self.rows[self.turn % 2, :, : len(part)]
            rows[self.rank].copy_(part)
            self.counters[LINE * self.rank] = self.turn
            for other in range(self.world):
                if self.counters[LINE * other] < self.turn:
                    self._wait(other)
            torch.add(rows[0], rows[1], out=part)
            for row in rows[2:]:
                part += row

    def _wait(self, other: int) -> None:
        counters, place, turn = self.counters, LINE * other, self.turn
        for _ in range(SPINS):
            if counters[place] >= turn:
                return
        for _ in range(YIELDS):
            os.sched_yield()
            if counters[place] >= turn:
                return
        began = looked = time.monotonic()
        while counters[place] < turn:
            time.sleep(NAP_S)
            now = time.monotonic()
            if now - looked > GONE_EVERY_S:
                looked = now
                if not _lives(self.pids[other]) or now - began > PATIENCE_S:
                    raise RuntimeError(f"worker {other} (process {self.pids[other]}) does not answer any more")


def file_bytes(world: int) -> int:
    """What the workers' file holds: counters, and two sets of rows."""
    return 8 * LINE * world + 2 * world * CHUNK * 4


def meet(world: int, rank: int) -> SharedMemory | None:
    """Memory that all workers share, or None on all of them where they have none in common; a collective operation."""
    found = None
    path = _offer(world) if rank == 0 else None
    try:
        told: list[tuple[str, int, str]] = [("", 0, "")] * world
        dist.all_gather_object(told, ("" if path is None else str(path), os.getpid(), _who_counts()))
        with contextlib.suppress(OSError, ValueError):
            if told[0][0] and {counted for *_, counted in told} == {_who_counts()}:
                found = SharedMemory(Path(told[0][0]), world, rank, [pid for _, pid, _ in told])
        here = torch.tensor([float(found is not None)])
        dist.all_reduce(here)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
    return found if int(here) == world else None


def _offer(world: int) -> Path | None:
    """A new file of zeros in memory, big enough; None where there is no room, or where it would not be safe."""
    folder = Path("/dev/shm")
    if not folder.is_dir() or platform.machine() not in IN_ORDER:
        return None
    handle, name = tempfile.mkstemp(prefix="ganmill-", dir=folder)
    try:
        os.posix_fallocate(handle, 0, file_bytes(world))     # without room, a later write would be a bus error
    except OSError:
        Path(name).unlink()
        return None
    finally:
        os.close(handle)
    return Path(name)


def _who_counts() -> str:
    """Whose process ids ours are: those of other containers, which may share the memory, mean nothing here."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _lives(pid: int) -> bool:
    """Does a process of this machine still run? One that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
