"""What one busy neighbour does to training: images a second of two workers, of a thread a CPU and of one, alone and beside a spinner.

    python benchmarks/busy_neighbour.py [--seconds 8]

Each training is a process of its own, the bare loop with the default preset on noise at 32×32.
"""

import argparse
import os
import signal
import subprocess
import sys

import torch
from machine import machine
from two_workers import WORKERS, train_with_two_workers

import gan.loop
from gan.allocator import keep_freed_memory
from gan.presets import Budget, choose


def train(threads: int, seconds: float) -> None:
    """Prints images a second; 0 threads: of two workers."""
    keep_freed_memory()                                   # as ganmill's workers do
    images = torch.randint(0, 256, (400, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec, recipe, _ = choose("auto", 32, 1, [40] * 10, Budget(seconds=seconds))
    labels = torch.arange(400) % 10
    if threads == 0:
        print(round(1000 * train_with_two_workers(images, labels, spec, recipe, seed=0).meta["kimg"] / seconds))
        return
    torch.set_num_threads(threads)
    state = gan.loop.train(images, labels, spec, recipe, seed=0)
    print(round(state.images_seen / state.elapsed_s))


def rate(threads: int, seconds: float) -> int:
    """Of such a process."""
    env = {**os.environ, "GOMP_SPINCOUNT": "10000000"}    # as ganmill sets it for Ray's workers
    told = subprocess.run([sys.executable, __file__, "--seconds", str(seconds), "--threads", str(threads)], env=env, check=True,
                          capture_output=True, text=True)
    return int(told.stdout.split()[-1])


def main() -> None:
    """Prints both rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        train(arguments.threads, arguments.seconds)
        return
    print(machine())
    cpus = len(os.sched_getaffinity(0))
    alone = [rate(threads, arguments.seconds) for threads in (0, cpus, 1)]
    print(f"alone: {WORKERS} workers {alone[0]} images/s, {cpus} threads {alone[1]}, 1 thread {alone[2]}", flush=True)
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        beside = [rate(threads, arguments.seconds) for threads in (0, cpus, 1)]
    finally:
        os.kill(neighbour.pid, signal.SIGKILL)
        neighbour.wait()
    print(f"beside a process that spins: {WORKERS} workers {beside[0]} images/s, {cpus} threads {beside[1]}, 1 thread {beside[2]}")


if __name__ == "__main__":
    main()
