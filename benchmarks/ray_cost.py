"""What Ray costs: images a second of the same training bare and under Ray Train, by the same workers and threads.

The rate is the median of the training's own readings, one a second, without its first ten seconds: Ray still starts
processes of its own then. The whole run's rate, those seconds included, is printed beside it.

    python benchmarks/ray_cost.py [--kimg 60] [--rounds 3]
"""

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")       # as ganmill sets it for Ray's workers; before torch is loaded

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

STARTING_S = 10.0
SHAPES = ((1, 1), (1, 2), (2, 1))                         # (workers, threads of each)
Rates = tuple[float, float]                               # (steady, over all), images a second


def config_of(folder: str, kimg: float, workers: int) -> Config:
    """The digits at 32×32."""
    return parse_config({
        "name": "cost", "source": {"format": "digits"}, "publish": {"url": folder},
        "train": {"budget": {"kimg": kimg}, "workers": workers, "batch_size": 64},
    })


@contextlib.contextmanager
def threads_of_a_worker(threads: int) -> Iterator[None]:
    """What a user would set to have no more."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def under_ray(config: Config, run: Store, threads: int) -> Rates:
    """Of one training by Ray Train."""
    snapshot = prepare(config, run, NullProgress())
    with threads_of_a_worker(threads), connected(config):
        over_all = train(config, snapshot, run, NullProgress()).images_per_s
    return steady(load_metrics(run)), over_all


def bare(config: Config, run: Store, threads: int) -> Rates:
    """Of the same training in this process, or in two that it starts."""
    snapshot = prepare(config, run, NullProgress())
    data = load_split(run, "train")
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    spec, recipe, _ = choose_preset(config, 32, train_counts(snapshot), "cpu")
    seed = derive(config.seed, "train")
    readings: list[dict[str, Any]] = []
    if config.train.workers == 1:
        keep_freed_memory()                               # as ganmill's workers do
        torch.set_num_threads(threads)
        gan.loop.train(images, labels, spec, recipe, seed=seed, hooks=gan.loop.Hooks(on_metrics=readings.append))
    else:
        with tempfile.TemporaryDirectory() as folder:
            train_with_two_workers(images, labels, spec, recipe, seed, metrics=Path(folder) / "metrics")
            readings += RowFile(Path(folder) / "metrics").read()
    return steady(readings), 1000 * readings[-1]["kimg"] / readings[-1]["seconds"]


def steady(readings: list[dict[str, Any]]) -> float:
    """Median images a second of the readings after the first seconds."""
    return statistics.median(r["images_per_s"] for r in readings if "images_per_s" in r and r["seconds"] > STARTING_S)


def main() -> None:
    """Prints the ratios, each from runs in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kimg", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    ways = {"bare": bare, "Ray": under_ray}
    rates: dict[tuple[str, int, int], list[Rates]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            for workers, threads in SHAPES:
                for way, measure in ways.items():
                    run = Store(f"{folder}/{i}-{workers}-{threads}-{way}")
                    found = measure(config_of(folder, arguments.kimg, workers), run, threads)
                    rates.setdefault((way, workers, threads), []).append(found)
                    print(f"{way}, {workers} × {threads}: {found[0]:.0f}, over all {found[1]:.0f}", flush=True)
    for workers, threads in SHAPES:
        pairs = list(zip(rates["Ray", workers, threads], rates["bare", workers, threads]))
        own, whole = (statistics.median(ray[i] / alone[i] for ray, alone in pairs) for i in (0, 1))
        rate = statistics.median(ray[0] for ray, _ in pairs)
        print(f"{workers} worker(s) of {threads} thread(s): {rate:.0f} images/s under Ray, {own:.2f} of the bare loop; "
              f"over all {whole:.2f}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
