"""What Ray costs: images a second of the training loop bare and under Ray Train, same threads; and how to share cores.

The rate is the median of the training's own readings, one a second, without its first ten seconds: Ray still starts
processes of its own then. The whole run's rate, those seconds included, is printed beside it.

    python benchmarks/ray_cost.py [--kimg 60]
"""

import argparse
import os
import statistics
import tempfile
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")       # as ganmill sets it for Ray's workers; before torch is loaded

import torch
from machine import machine

import gan.loop
from gan.allocator import keep_freed_memory
from pipeline.cluster import connected, local_cpus
from pipeline.config import parse_config
from pipeline.prepare import load_split, prepare
from pipeline.progress import NullProgress
from pipeline.seeds import derive
from pipeline.store import Store
from pipeline.training import choose_preset, load_metrics, train, train_counts

STARTING_S = 10.0


def images_per_s(folder: str, kimg: float, workers: int, *, ray: bool) -> tuple[float, float]:
    """(steady, over all) of one training on the digits at 32×32."""
    config = parse_config({
        "name": "cost", "source": {"format": "digits"}, "publish": {"url": folder},
        "train": {"budget": {"kimg": kimg}, "workers": workers, "batch_size": 64},
    })
    run = Store(f"{folder}/{workers}-{ray}-{os.urandom(4).hex()}")
    snapshot = prepare(config, run, NullProgress())
    if ray:
        with connected(config):
            over_all = train(config, snapshot, run, NullProgress()).images_per_s
        return steady(load_metrics(run)), over_all
    keep_freed_memory()                                   # as ganmill's workers do
    torch.set_num_threads(local_cpus())
    data = load_split(run, "train")
    spec, recipe, _ = choose_preset(config, 32, train_counts(snapshot), "cpu")
    readings: list[dict[str, Any]] = []
    state = gan.loop.train(torch.from_numpy(data.images), torch.from_numpy(data.labels), spec, recipe,
                           seed=derive(config.seed, "train"), hooks=gan.loop.Hooks(on_metrics=readings.append))
    return steady(readings), state.images_seen / state.elapsed_s


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
    cores = local_cpus()
    rates: dict[str, list[tuple[float, float]]] = {"bare": [], "ray": [], "split": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            rates["bare"].append(images_per_s(folder, arguments.kimg, 1, ray=False))
            rates["ray"].append(images_per_s(folder, arguments.kimg, 1, ray=True))
            rates["split"].append(images_per_s(folder, arguments.kimg, cores, ray=True))
            print({name: [round(value) for value in values[-1]] for name, values in rates.items()}, flush=True)
    names = {"bare": f"bare loop, {cores} threads", "ray": f"Ray, 1 worker of {cores} threads",
             "split": f"Ray, {cores} workers of 1 thread"}
    bare = [statistics.median(column) for column in zip(*rates["bare"])]
    for name, title in names.items():
        own, whole = (statistics.median(column) for column in zip(*rates[name]))
        print(f"{title}: {own:.0f} images/s, {own / bare[0]:.2f} of the bare loop; over all {whole:.0f}, {whole / bare[1]:.2f}; "
              f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
