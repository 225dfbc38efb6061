"""What it costs two workers to be one training: the time of a step beside that of two trainings that know nothing of each other.

    python benchmarks/worker_sums.py [--resolution 32] [--channels 1] [--steps 40] [--turns 10]

Two processes of one thread each train the default preset on random images, in turns each for itself on batches of 32, and together
on one of 64: the same work, but for sums of gradients and of batch norm's statistics, eight a step, and for waiting until the other
comes. Both are on at the same time either way, so they have the same machine.
"""

import argparse
import multiprocessing
import socket
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from machine import machine
from parent import end_with_it

from gan.allocator import keep_freed_memory
from gan.loop import new_state
from gan.networks.norm import share_statistics
from gan.presets import Budget, choose
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
from gan.workers import Workers

BATCH = 64


def training(args: argparse.Namespace, workers: Workers, rank: int, batch: int) -> Any:
    """A function that makes one step."""
    generator = torch.Generator().manual_seed(0)
    side = args.resolution
    images = torch.randint(0, 256, (5000, args.channels, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(5000) % 10
    spec, recipe, _ = choose("auto", side, args.channels, [5000] * 10, Budget(kimg=20_000.0), "cpu", batch_size=batch, options={})
    state = new_state(images, labels, spec, recipe, 0, torch.device("cpu"))
    for network in (state.g, state.d):
        network.train()
        share_statistics(network, workers if workers.world > 1 else None)
    update = Update(Players(state.g, state.d, state.opt_g, state.opt_d), recipe,
                    Sampler(images, labels, 10, 1.0, 0, batch, rank, workers.world), workers)
    control, count = torch.zeros(3), iter(range(10**9))
    return lambda: update(Moment(next(count), 1.0, recipe.augment_p_at(0.5)), control)


def work(args: argparse.Namespace, rank: int, port: int, told: Any) -> None:
    """One process: milliseconds a step by turn, apart and together."""
    end_with_it()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)                   # as the training loop does
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    ways = [training(args, Workers(1), 0, BATCH // 2), training(args, Workers(2, rank), rank, BATCH)]
    taken = []
    for turn in range(args.turns + 1):               # the first warms up
        dist.barrier()
        found = [0.0, 0.0]
        for way in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            for _ in range(args.steps):
                ways[way]()
            found[way] = 1000 * (time.perf_counter() - began) / args.steps
            dist.barrier()
        taken.append(found)
    if rank == 0:
        told.put(taken[1:])
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=10)
    args = parser.parse_args()
    print(machine())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    both = [context.Process(target=work, args=(args, rank, port, told)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    if any(process.exitcode for process in both):    # it has said why; nothing would ever come through the queue
        raise SystemExit(1)
    apart, together = np.array(told.get()).T
    ratios = together / apart
    print(f"{args.resolution} px, {args.channels} channel(s), a step of two workers on batches of {BATCH // 2}: "
          f"apart {np.mean(apart):.1f} ms, together {np.mean(together):.1f} ms ({1000 * BATCH / np.mean(together):,.0f} images/s); "
          f"{np.mean(ratios):.3f} ± {np.std(ratios, ddof=1) / len(ratios) ** 0.5:.3f} times as long ({len(ratios)} turns)")


if __name__ == "__main__":
    main()
