"""How long the smoke verdict takes: the lift trial of three seeds on the demo's digits, and what a second call costs.

    python benchmarks/smoke_verdict.py

The generator is a stub that repeats training images with noise: its worth doesn't change the time. Aim: 120 s on two cores.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from gan.classical import ClassicalAugment
from pipeline.config import LiftConfig, load_config
from pipeline.lift import Bench, Rows, Schedule, measure_lift
from pipeline.prepare import load_split, prepare
from pipeline.progress import NullProgress
from pipeline.store import Store

ROOT = Path(__file__).resolve().parent.parent


def stub(train: Rows, labels: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
    """Training images of the asked classes with noise on them."""
    rows = [torch.nonzero(train.labels == c)[:, 0] for c in range(10)]
    chosen = torch.stack([rows[c][s % len(rows[c])] for c, s in zip(labels.tolist(), seeds.tolist())])
    noise = torch.from_numpy(np.random.default_rng(int(seeds[0])).normal(0, 20, (len(labels), *train.images.shape[1:])))
    return (train.images[chosen] + noise).clamp(0, 255).to(torch.uint8)


def main() -> None:
    config = load_config(ROOT / "examples" / "digits.yaml")
    with tempfile.TemporaryDirectory() as folder:
        run = Store(folder)
        snapshot = prepare(config, run, NullProgress())
        loaded = (load_split(run, name) for name in ("train", "val", "test"))
        train, val, test = (Rows(torch.from_numpy(s.images), torch.from_numpy(s.labels)) for s in loaded)
        bench = Bench(train, val, test, val, snapshot.classes, ClassicalAugment(), Schedule.for_lift(len(train), 1))
        asked = LiftConfig(seeds=3, ratios=[0.5, 1.0])
        for call in ("from nothing", "again, every row kept"):
            began = time.perf_counter()
            figure = measure_lift(asked, bench, lambda y, s: stub(train, y, s), 0, NullProgress(), run=run, inputs="x")
            print(f"{call}: {time.perf_counter() - began:.1f} s for {len(figure.rows)} classifiers of {bench.schedule.steps} steps")
        print(figure.sentence)
    print(machine())


if __name__ == "__main__":
    main()
