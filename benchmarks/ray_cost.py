"""What Ray costs: images a second of the training loop bare and under Ray Train, same threads; and how to share cores.

    python benchmarks/ray_cost.py [--kimg 30]
"""

import argparse
import os
import tempfile

import torch
from machine import machine

import gan.loop
from pipeline.cluster import connected, local_cpus
from pipeline.config import parse_config
from pipeline.prepare import load_split, prepare
from pipeline.progress import NullProgress
from pipeline.seeds import derive
from pipeline.store import Store
from pipeline.training import choose_preset, train, train_counts


def images_per_s(folder: str, kimg: float, workers: int, *, ray: bool) -> float:
    """Of one training on the digits at 32×32, from its first step to its last."""
    config = parse_config({
        "name": "cost", "source": {"format": "digits"}, "publish": {"url": folder},
        "train": {"budget": {"kimg": kimg}, "workers": workers, "batch_size": 64},
    })
    run = Store(f"{folder}/{workers}-{ray}-{os.urandom(4).hex()}")
    snapshot = prepare(config, run, NullProgress())
    if ray:
        with connected(config):
            return train(config, snapshot, run, NullProgress()).images_per_s
    torch.set_num_threads(local_cpus())
    data = load_split(run, "train")
    spec, recipe, _ = choose_preset(config, 32, train_counts(snapshot), "cpu")
    state = gan.loop.train(torch.from_numpy(data.images), torch.from_numpy(data.labels), spec, recipe,
                           seed=derive(config.seed, "train"))
    return state.images_seen / state.elapsed_s


def main() -> None:
    """Prints the ratios, each from runs in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kimg", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    cores = local_cpus()
    with tempfile.TemporaryDirectory() as folder:
        rates: dict[str, list[float]] = {"bare": [], "ray": [], "split": []}
        for _ in range(arguments.rounds):
            rates["bare"].append(images_per_s(folder, arguments.kimg, 1, ray=False))
            rates["ray"].append(images_per_s(folder, arguments.kimg, 1, ray=True))
            rates["split"].append(images_per_s(folder, arguments.kimg, cores, ray=True))
    best = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    print(f"bare loop, {cores} threads: {best['bare']:.0f} images/s")
    print(f"Ray, 1 worker of {cores} threads: {best['ray']:.0f} images/s, {best['ray'] / best['bare']:.2f} of the bare loop")
    print(f"Ray, {cores} workers of 1 thread: {best['split']:.0f} images/s, {best['split'] / best['ray']:.2f} of one worker")


if __name__ == "__main__":
    main()
