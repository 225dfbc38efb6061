"""What Ray costs: images a second of the same training bare and under Ray Train, by the same workers and threads.

Both trainings are alive at once and take turns of some seconds: all processes of one, Ray's own among them, are stopped while the
other runs, so that a host whose speed drifts is as fast for both. A turn's rate is the mean of the training's own readings within
it, about one a second; a ratio is that of a turn under Ray and the bare one right after it.

    python benchmarks/ray_cost.py [--turns 16] [--seconds 8] [--shapes 2x1,1x2,1x1]
"""

import argparse
import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")       # as ganmill sets it for Ray's workers; before torch is loaded

import psutil
import torch
from machine import machine
from rows import RowFile
from two_workers import train_with_two_workers

import gan.loop
from gan.allocator import keep_freed_memory
from pipeline.cluster import connected
from pipeline.config import Config, parse_config
from pipeline.prepare import load_split, prepare
from pipeline.progress import NullProgress
from pipeline.seeds import derive
from pipeline.store import Store
from pipeline.training import choose_preset, load_metrics, train, train_counts

STARTING_S = 25.0                                         # Ray still starts processes of its own so long after the first step
ENDLESS_KIMG = 100_000.0
GAP_S = 3.0                                               # between two readings: the training was stopped meanwhile


# ---- one training, in a process of its own ----------------------------------------------------------------------


def config_of(folder: str, workers: int) -> Config:
    """The digits at 32×32."""
    return parse_config({
        "name": "cost", "source": {"format": "digits"}, "publish": {"url": folder},
        "train": {"budget": {"kimg": ENDLESS_KIMG}, "workers": workers, "batch_size": 64},
    })


def under_ray(config: Config, run: Store, metrics: RowFile, threads: int) -> None:
    """Trains by Ray Train until it is interrupted; its readings reach `metrics` then."""
    snapshot = prepare(config, run, NullProgress())
    os.environ["OMP_NUM_THREADS"] = str(threads)          # what a user would set to have no more
    try:
        with connected(config):
            metrics.path.touch()
            train(config, snapshot, run, NullProgress())
    finally:
        for row in load_metrics(run):
            metrics.add(row)


def bare(config: Config, run: Store, metrics: RowFile, threads: int) -> None:
    """The same training in this process, or in two that it starts."""
    snapshot = prepare(config, run, NullProgress())
    data = load_split(run, "train")
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    spec, recipe, _ = choose_preset(config, 32, train_counts(snapshot), "cpu")
    seed = derive(config.seed, "train")
    if config.train.workers > 1:
        train_with_two_workers(images, labels, spec, recipe, seed, metrics=metrics.path)
    keep_freed_memory()                                   # as ganmill's workers do
    torch.set_num_threads(threads)
    gan.loop.train(images, labels, spec, recipe, seed=seed, hooks=gan.loop.Hooks(on_metrics=metrics.add))


WAYS = {"Ray": under_ray, "bare": bare}


# ---- turns ------------------------------------------------------------------------------------------------------


class Runner:
    """A process with a training in it, and all that it started."""

    def __init__(self, way: str, folder: Path, workers: int, threads: int) -> None:
        self.way, self.metrics = way, RowFile(folder / f"{way}.jsonl")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--train", way, "--folder", str(folder), "--shapes", f"{workers}x{threads}"],
            stdout=subprocess.DEVNULL, stderr=(folder / f"{way}.err").open("w"))
        self.errors = folder / f"{way}.err"

    def wait_for_readings(self) -> None:
        """Until it trains, and some seconds more."""
        deadline = time.monotonic() + 120
        while not self.metrics.path.exists() and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.2)
        if not self.metrics.path.exists():
            raise RuntimeError(f"no reading came: {self.errors.read_text()[-2000:]}")
        time.sleep(STARTING_S)

    def tell(self, number: signal.Signals) -> None:
        """A signal for the process and all below it."""
        root = psutil.Process(self.process.pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> None:
        """As Ctrl-C would where Ray has readings to hand over and processes to end; then all of it is killed."""
        self.tell(signal.SIGCONT)
        below = psutil.Process(self.process.pid).children(recursive=True)
        if self.way == "Ray":
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.process.kill()
        self.process.wait()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def turns(self) -> list[float]:
        """Mean images a second of each turn, from the readings that lie wholly in it."""
        found: list[list[float]] = [[]]
        before = math.inf
        for reading in self.metrics.read():
            if "images_per_s" not in reading:
                continue
            if reading["seconds"] - before > GAP_S:
                found.append([])
            elif before < math.inf:
                found[-1].append(reading["images_per_s"])
            before = reading["seconds"]
        return [statistics.mean(turn) for turn in found[1:] if len(turn) >= 2]


@contextlib.contextmanager
def both(folder: Path, workers: int, threads: int) -> Iterator[tuple[Runner, Runner]]:
    """Ray's training and the bare one, both well under way, both stopped."""
    runners: list[Runner] = []
    try:
        for way in WAYS:
            runners.append(Runner(way, folder, workers, threads))
            runners[-1].wait_for_readings()
            runners[-1].tell(signal.SIGSTOP)
        yield runners[0], runners[1]
    finally:
        for runner in runners:
            runner.end()


def compare(workers: int, threads: int, turns: int, seconds: float) -> None:
    """Prints one shape's row."""
    with tempfile.TemporaryDirectory() as name:
        with both(Path(name), workers, threads) as runners:
            for _ in range(turns):
                for runner in runners:
                    runner.tell(signal.SIGCONT)
                    time.sleep(seconds)
                    runner.tell(signal.SIGSTOP)
            load = os.getloadavg()[0]
        ray, alone = (runner.turns() for runner in runners)
        if min(len(ray), len(alone)) < 2:
            raise RuntimeError(f"too few turns: {[runner.errors.read_text()[-3000:] for runner in runners]}")
    ratios = [a / b for a, b in zip(ray, alone)]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    print(f"{workers} worker(s) of {threads} thread(s): {statistics.median(ray):.0f} images/s under Ray, "
          f"{statistics.median(alone):.0f} bare; ratio median {statistics.median(ratios):.3f}, "
          f"mean {statistics.mean(ratios):.3f} ± {error:.3f} (standard error), "
          f"{min(ratios):.2f} … {max(ratios):.2f} over {len(ratios)} turns; load {load:.1f}", flush=True)


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--shapes", default="2x1,1x2,1x1", help="workers x threads of each")
    parser.add_argument("--train", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes: list[Any] = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",")]
    if arguments.train:
        (workers, threads), folder = shapes[0], arguments.folder
        run = Store(f"{folder}/{arguments.train}")
        WAYS[arguments.train](config_of(str(folder), workers), run, RowFile(folder / f"{arguments.train}.jsonl"), threads)
        return
    print(machine())
    for workers, threads in shapes:
        compare(workers, threads, arguments.turns, arguments.seconds)


if __name__ == "__main__":
    main()
