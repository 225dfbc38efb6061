"""What runs in each of Ray Train's workers: one rank of the training."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.records import Snapshot
from pipeline.scheduling import go_first
from pipeline.store import Store, troubles
from pipeline.training import checkpoints
from pipeline.training.preset import choose_preset, train_counts


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; plain values, so that Ray can ship it."""

    run: Store
    config: Config
    snapshot: Snapshot
    digest: str
    threads: int
    board: Any


def worker(loop_config: dict[str, Any]) -> None:
    """One rank: loads the train split, continues from the newest checkpoint, trains."""
    import ray.train
    import torch

    import gan.loop
    from gan.allocator import keep_freed_memory
    from gan.errors import GanError
    from pipeline.prepare import load_split
    from pipeline.seeds import derive

    job: Job = loop_config["job"]
    if ray.get(job.board.given_up.remote()):         # Ray restarted the group, but another try would fail alike
        return
    keep_freed_memory()
    if job.config.cluster.address == "local":
        go_first()
    torch.set_num_threads(job.threads)               # under Ray torch saw one thread even with num_cpus=2
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world == 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()    # nobody to talk to, but gloo's thread would look a hundred times a second
    device = ray.train.torch.get_device() if job.config.train.gpus_per_worker else torch.device("cpu")
    data, held_out = load_split(job.run, "train"), load_split(job.run, "val")
    spec, recipe, reason = choose_preset(
        job.config, job.snapshot.resolution, train_counts(job.snapshot), str(device.type)
    )
    hooks = _hooks(job, rank, {"preset": reason, "run_digest": job.digest})
    if rank == 0:
        job.board.push.remote("preset", {"model": spec.family, "reason": reason})
    resume = _resume_point(job, rank)
    try:
        state = gan.loop.train(
            torch.from_numpy(data.images), torch.from_numpy(data.labels), spec, recipe,
            seed=derive(job.config.seed, "train"), hooks=hooks, resume=resume, rank=rank, world=world, device=str(device),
            held_out=(torch.from_numpy(held_out.images), torch.from_numpy(held_out.labels)),
        )
        if rank == 0 and not state.finished:
            ray.get(job.board.push.remote("stopped", True))
    except GanError as e:                            # diverged, or can't begin: a restart would end alike
        ray.get(job.board.push.remote("failed", str(e)))
    except StoreError:                               # may pass by itself: Ray restarts the group, which resumes
        raise
    except Exception as e:
        if world == 1:                               # several workers also raise when one of them was killed
            ray.get(job.board.push.remote("failed", f"{type(e).__name__}: {e}"))
        raise
    ray.train.report({"rank": rank})


def _resume_point(job: Job, rank: int) -> bytes | None:
    meta = checkpoints.latest_meta(job.run)
    if meta is None or meta["run_digest"] != job.digest:
        return None
    if rank == 0:
        job.board.push.remote("resumed", meta["kimg"])
    return job.run.get(meta["key"])


def _hooks(job: Job, rank: int, facts: dict[str, Any]) -> Any:
    """What the loop calls on its way; only rank 0 writes."""
    from gan.loop import GRID_COLUMNS, Hooks
    from pipeline.grids import tile_grid

    def on_checkpoint(data: bytes, meta: dict[str, Any]) -> None:
        key = keys.checkpoint(meta["kimg"])
        job.run.put(key, data)
        job.run.put_json(key.removesuffix(".safetensors") + ".json", {**meta, **facts, "key": key})
        checkpoints.prune(job.run)
        push("store_errors", troubles.take())

    def on_restart(reason: str, kimg: float) -> None:
        for name in checkpoints.names(job.run):      # what came after it is no good
            if job.run.get_json(name)["kimg"] > kimg:
                checkpoints.remove(job.run, name)
        push("restarted", (reason, kimg))

    def on_grid(kimg: float, images: Any) -> None:
        job.run.put(keys.grid(kimg), tile_grid(images.numpy(), GRID_COLUMNS))

    push: Callable[[str, Any], Any] = job.board.push.remote
    return Hooks(
        on_metrics=lambda metrics: push("metrics", metrics),
        on_checkpoint=on_checkpoint, on_grid=on_grid, on_restart=on_restart, should_stop=_stop_flag(job.board),
    )


def _stop_flag(board: Any, every_s: float = 0.5) -> Callable[[], bool]:
    """Asks the board at most twice a second, without waiting for its answer in the hot loop."""
    import ray

    asked: list[Any] = [None, 0.0, False]            # pending reference, when asked, last answer

    def should_stop() -> bool:
        if asked[0] is not None:
            ready, _ = ray.wait([asked[0]], timeout=0)
            if ready:
                asked[2], asked[0] = bool(ray.get(ready[0])), None
        elif time.monotonic() - asked[1] > every_s:
            asked[0], asked[1] = board.stopping.remote(), time.monotonic()
        return bool(asked[2])

    return should_stop
