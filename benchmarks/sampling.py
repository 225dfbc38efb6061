"""Sampling end to end, encoding and writing included, against a bare loop that generates and drops, on the same cores.

    python benchmarks/sampling.py [--rows 40000] [--folder FOLDER]

Beside it, what most scripts do: one process that generates a thousand at a time and saves one PNG after the other with Pillow.
And the most that a file an image leaves possible on this disk: the bare loop that also creates, writes and closes a file of 600
bytes for each image, without encoding, hashing or syncing anything.

Nothing is deleted before the end: on ext4 without a journal the kernel walks past every inode freed in the last minutes when it
makes a file, so that a round after a deletion measures that, at a millisecond a file.
"""

import argparse
import hashlib
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine
from PIL import Image

from gan.allocator import keep_freed_memory
from gan.checkpoint import load_generator, save
from gan.loop import new_state
from gan.presets import Budget, choose
from gan.sampling import generate
from pipeline import fanout
from pipeline.cluster import connected, local_cpus
from pipeline.config import Config, parse_config
from pipeline.plan import Plan
from pipeline.progress import NullProgress
from pipeline.records import Checkpoint, Snapshot
from pipeline.store import Store

CLASSES = tuple("0123456789")
FILE_BYTES = 600             # about a PNG of 28×28


def checkpoint_bytes() -> bytes:
    """The default preset at 32×32 grey, untrained: its speed is that of a trained one."""
    spec, recipe, _ = choose("auto", 32, 1, [100] * 10, Budget(kimg=1))
    images, labels = torch.zeros(20, 1, 32, 32, dtype=torch.uint8), torch.arange(20) % 10
    return save(new_state(images, labels, spec, recipe, 0, torch.device("cpu")))[0]


def bare(data: bytes, rows: int, folder: str | None = None) -> None:
    """Generates and drops, in one process with one thread; with a folder, a file of zeros is left for each image."""
    keep_freed_memory()                              # as ganmill's workers do
    torch.set_num_threads(1)
    net = load_generator(data).net
    for first in range(0, rows, 1000):
        generate(net, torch.arange(1000) % 10, np.arange(first, first + 1000))
        for i in range(first, first + 1000) if folder else ():
            file = os.open(f"{folder}/{i % 10}/{os.getpid()}-{i}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(file, bytes(FILE_BYTES))
            os.close(file)


def bare_rate(data: bytes, rows: int, folder: str | None = None) -> float:
    """Images a second of one such process a core, all at once, start-up left out."""
    cores = local_cpus()
    for name in CLASSES if folder else ():
        (Path(str(folder)) / name).mkdir()
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.starmap(bare, [(data, 1000)] * cores, chunksize=1)
        began = time.perf_counter()
        pool.starmap(bare, [(data, rows // cores, folder)] * cores, chunksize=1)
        return rows / (time.perf_counter() - began)


def naive_rate(data: bytes, rows: int, folder: str) -> float:
    """Images a second of one process with torch's own threads, generation and `Image.save` in turn."""
    for name in CLASSES:
        (Path(folder) / name).mkdir()
    net = load_generator(data).net
    generate(net, torch.arange(1000) % 10, np.arange(1000))
    began = time.perf_counter()
    for first in range(0, rows, 1000):
        labels = torch.arange(1000) % 10
        for i, image in enumerate(generate(net, labels, np.arange(first, first + 1000)).numpy()):
            Image.fromarray(image[0]).save(f"{folder}/{CLASSES[labels[i]]}/{first + i}.png")
    return rows / (time.perf_counter() - began)


class FirstAndLast(NullProgress):
    """When rows began to appear, so that starting the workers is told apart from working."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """Keeps time and rows whenever rows were added."""
        if not self.seen or done > self.seen[-1][1]:
            self.seen.append((time.perf_counter(), done))

    @property
    def rate(self) -> float:
        """Rows a second from the first shards to the last."""
        (start, before), (end, after) = self.seen[1], self.seen[-1]
        return (after - before) / (end - start)


def minted_rate(config: Config, data: bytes, rows: int, folder: str) -> float:
    """Images a second of the product: Ray actors that generate, encode and put whole shards."""
    dataset = Store(f"{folder}/set")
    run = dataset.child("runs/r")
    run.put("checkpoints/c.safetensors", data)
    digest = hashlib.sha256(data).hexdigest()
    checkpoint = Checkpoint("checkpoints/c.safetensors", digest, "dcgan", "", {}, 1.0, 1.0, 1.0, "", "")
    counts = dict.fromkeys(CLASSES, 1)
    snapshot = Snapshot("", "", "digits", None, CLASSES, 32, 1, {"train": counts, "val": counts, "test": counts}, False)
    plan = Plan(CLASSES, dict.fromkeys(CLASSES, rows // 10), config.sample.rows_per_shard)
    progress = FirstAndLast()
    fanout.sample(config, snapshot, checkpoint, plan, run, dataset, "v000001-20260101T000000Z-00000000", progress)
    return progress.rate


def main() -> None:
    """Prints the ratios for each format, from runs in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to write to; the system's temporary folder by default")
    arguments = parser.parse_args()
    print(machine())
    data = checkpoint_bytes()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as everything:

        def fresh() -> str:
            return tempfile.mkdtemp(dir=everything)

        naive = statistics.median(naive_rate(data, arguments.rows // 4, fresh()) for _ in range(arguments.rounds))
        print(f"naive loop, one PNG at a time: {naive:,.0f} images/s", flush=True)
        for name in ("parquet", "webdataset", "png"):
            config = parse_config({"name": "cost", "source": {"format": "digits"},
                                   "sample": {"format": name, "rows_per_shard": 1000, "workers": local_cpus()}})
            ratios, rates = [], []
            with connected(config):
                for _ in range(arguments.rounds):
                    rates.append(minted_rate(config, data, arguments.rows, fresh()))
                    ratios.append(rates[-1] / bare_rate(data, arguments.rows))
            rate = statistics.median(rates)
            print(f"{name}: {rate:,.0f} images/s written, {statistics.median(ratios):.2f} of the bare generator "
                  f"({min(ratios):.2f} … {max(ratios):.2f}), {rate / naive:.1f} x the naive loop", flush=True)
        files = [bare_rate(data, arguments.rows, fresh()) / bare_rate(data, arguments.rows) for _ in range(arguments.rounds)]
        print(f"a file an image and nothing else: {statistics.median(files):.2f} of the bare generator "
              f"({min(files):.2f} … {max(files):.2f})", flush=True)


if __name__ == "__main__":
    main()
