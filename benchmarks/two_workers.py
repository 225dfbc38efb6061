"""Training as ganmill does it on a machine's CPUs: two workers of half of them, without Ray.

Imported by the benchmarks that compare generators at equal seconds; a budget in seconds begins when both have started.
"""

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
from parent import end_with_it
from torch import Tensor

from gan.allocator import keep_freed_memory
from gan.checkpoint import LoadedGenerator, load_generator
from gan.errors import TrainingDiverged
from gan.networks import NetSpec
from gan.recipe import Recipe
from pipeline.scheduling import local_cpus

WORKERS = 2


def train_with_two_workers(images: Tensor, labels: Tensor, spec: NetSpec, recipe: Recipe, seed: int,
                           keep: Path | None = None, metrics: Path | None = None) -> LoadedGenerator:
    """The generator after the recipe's budget; one worker where there is one CPU alone.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        keep: a file for the checkpoint.
        metrics: a file for the training's own readings, JSON lines.

    Raises:
        TrainingDiverged: it said so; with its reason.
    """
    world = min(WORKERS, local_cpus())
    context = multiprocessing.get_context("spawn")   # a forked process would hang in the threads that it lacks
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save((images, labels), folder / "data.pt")
        processes = [context.Process(target=_work, args=(rank, world, folder, spec, recipe, seed, metrics)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if (folder / "reason").exists():
            raise TrainingDiverged(*json.loads((folder / "reason").read_text()))
        data = (folder / "generator").read_bytes()
    if keep is not None:
        keep.write_bytes(data)
    return load_generator(data)


def _work(rank: int, world: int, folder: Path, spec: NetSpec, recipe: Recipe, seed: int, metrics: Path | None) -> None:
    import torch.distributed as dist

    import gan.loop

    end_with_it()
    keep_freed_memory()                              # as ganmill's workers do
    torch.set_num_threads(max(1, local_cpus() // world))
    images, labels = torch.load(folder / "data.pt", weights_only=True)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)

    def keep(data: bytes, meta: dict[str, Any]) -> None:
        (folder / "generator").write_bytes(data)

    def read(row: dict[str, Any]) -> None:
        if metrics is not None:
            with metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")

    hooks = gan.loop.Hooks(on_checkpoint=keep, on_metrics=read)
    try:
        gan.loop.train(images, labels, spec, recipe, seed=seed, rank=rank, world=world, hooks=hooks)
    except TrainingDiverged as e:
        if rank == 0:
            (folder / "reason").write_text(json.dumps([e.reason, e.kimg]))
    finally:
        if world > 1:
            dist.destroy_process_group()             # as torch asks: its threads may abort a process that ends with them
