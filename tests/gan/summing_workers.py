"""One of several workers that add up; run by test_workers.py as a script: rank world folder what."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from gan import workers
from gan.workers import CHUNK, Workers

SIZES = (1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5)


def numbers(rank: int, size: int) -> torch.Tensor:
    """What this worker brings; any other can tell it."""
    return torch.randn(size, generator=torch.Generator().manual_seed(97 * rank + size))


def sums(rank: int, world: int) -> list[torch.Tensor]:
    """The sums of all sizes, by shared memory where the workers have it."""
    group = Workers(world, rank)
    print("shared" if group.memory is not None else "sockets", flush=True)
    brought = [numbers(rank, size) for size in SIZES]
    for x in brought:
        group.sum_(x)
    return brought


def hurried(rank: int, world: int) -> list[torch.Tensor]:
    """A thousand small sums with waits at random places: whoever reads a row too early or too late gets another sum."""
    group, odds = Workers(world, rank), random.Random(rank)
    found = torch.zeros(1000)
    for turn in range(len(found)):
        x = torch.full((5,), float((rank + 1) * (turn + 1)))
        group.sum_(x)
        found[turn] = x[turn % 5]
        if odds.random() < 0.01:
            time.sleep(odds.random() * 0.003)
    return [found]


def deserted(rank: int, world: int) -> list[torch.Tensor]:
    """Rank 1 dies on the way; what the others say of it."""
    group = Workers(world, rank)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        group.sum_(torch.ones(3))
    except RuntimeError as e:
        print(e, flush=True)
    return []


def apart(rank: int, world: int) -> list[torch.Tensor]:
    """The others can't see rank 0's file, as on another machine."""
    def nowhere(*_: object) -> None:
        raise FileNotFoundError

    if rank:
        workers.SharedMemory = nowhere                       # type: ignore[misc,assignment]
    return sums(rank, world)


def contained(rank: int, world: int) -> list[torch.Tensor]:
    """Each in a container of its own: they share memory, but not the ids of processes."""
    workers._who_counts = lambda: f"pid:[{rank}]"            # type: ignore[assignment]
    return sums(rank, world)


def crowded(rank: int, world: int) -> list[torch.Tensor]:
    """There is no room in memory for the file."""
    workers.file_bytes = lambda _: 1 << 60                   # type: ignore[assignment]
    return sums(rank, world)


if __name__ == "__main__":
    rank, world, folder, what = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(globals()[what](rank, world), folder / f"{rank}.pt")
    if what != "deserted":
        dist.destroy_process_group()
    os._exit(0)                                              # gloo would wait for a worker that died
