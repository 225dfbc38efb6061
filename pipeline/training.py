"""Training the generator with Ray Train.

The loop itself is plain torch (`gan.loop`); here it is given data, workers, a place for its checkpoints and a board to
tell its progress on. Checkpoints go to the run folder, not to Ray's own storage: one mechanism then serves a worker
lost in mid-training, a Ctrl-C, and a driver that was killed.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline import keys
from pipeline.cluster import cpus_per_worker, threads_per_worker
from pipeline.config import Config
from pipeline.errors import ConfigError, Interrupted, MissingObject, RunMismatch, StoreError, TrainingFailed
from pipeline.progress import Progress
from pipeline.records import Checkpoint, Snapshot
from pipeline.scheduling import go_first
from pipeline.store import Store, troubles

KEEP_CHECKPOINTS = 2
METRICS_EVERY_S = 5.0
POLL_S = 0.5
STOP_GRACE_S = 60.0


class Board:
    """Where workers tell how far they are and learn that they should stop; lives in a Ray actor."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._stop = False
        self._given_up = False

    def push(self, kind: str, payload: Any) -> None:
        """Keeps one event for the driver."""
        self._events.append((kind, payload))
        self._given_up = self._given_up or kind == "failed"

    def given_up(self) -> bool:
        """Did a worker fail for good?"""
        return self._given_up

    def drain(self) -> list[tuple[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Asks the workers to write a checkpoint and return."""
        self._stop = True

    def stopping(self) -> bool:
        """Were the workers asked to stop?"""
        return self._stop


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; plain values, so that Ray can ship it."""

    run: Store
    config: Config
    snapshot: Snapshot
    digest: str
    threads: int
    board: Any


def train(config: Config, snapshot: Snapshot, run: Store, progress: Progress) -> Checkpoint:
    """Trains on the snapshot's train split, or returns the checkpoint that this run already has.

    Args:
        run: the run's folder; checkpoints, `metrics.jsonl` and sample grids are put there.

    Raises:
        TrainingFailed: it diverged or collapsed, or lost its workers more often than `train.max_failures`.
        RunMismatch: the folder holds a generator trained from other data or another config.
        Interrupted: stopped on request; the next call continues from the checkpoint just written.
    """
    check_model(config, train_counts(snapshot))
    digest = config.digest("train", "prepare", "source", "seed")
    done = _finished(run, digest, snapshot)
    if done is not None:
        progress.note(f"training was finished before: {done.model}, {done.trained_kimg:.0f} kimg")
        return done
    with _reachable_by_workers(run) as shared:
        ending = _fit(config, snapshot, shared, run, digest, progress)
    if ending.stopped:
        raise Interrupted("training was stopped; its last checkpoint is kept")
    if ending.reason is not None:
        raise TrainingFailed(f"training of {ending.model or config.train.model} stopped: {ending.reason}")
    latest, meta = _latest_meta(run), _best_meta(run)
    if latest is None or meta is None:
        raise TrainingFailed("training ended without a checkpoint; see the worker's log above")
    checkpoint = Checkpoint(
        key=meta["key"], sha256=meta["sha256"], model=meta["spec"]["family"], preset=meta["preset"], net=meta["spec"],
        trained_kimg=meta["kimg"], images_per_s=1000 * latest["kimg"] / max(latest["elapsed_s"], 1e-9),
        seconds=latest["elapsed_s"], config_digest=digest, train_fingerprint=snapshot.fingerprint,
        validation=meta.get("validation"), choice=_choice(meta, latest), restarts=tuple(latest.get("restarts", ())),
    )
    if checkpoint.choice:
        progress.note(checkpoint.choice)
    run.put_json(keys.TRAINED, checkpoint.to_json())
    return checkpoint


def _finished(run: Store, digest: str, snapshot: Snapshot) -> Checkpoint | None:
    try:
        done = Checkpoint.from_json(run.get_json(keys.TRAINED))
    except MissingObject:
        return None
    if done.config_digest != digest or done.train_fingerprint != snapshot.fingerprint:
        what = "config" if done.config_digest != digest else "data"
        raise RunMismatch(f"{run.url} holds a generator trained from other {what}; give another --run-id")
    return done


def train_counts(snapshot: Snapshot) -> list[int]:
    """Training images of each class, zeros included."""
    return [snapshot.rows_per_class["train"][name] for name in snapshot.classes]


@contextlib.contextmanager
def _reachable_by_workers(run: Store) -> Iterator[Store]:
    """The run folder as other processes can reach it: itself, or for `memory://` a temporary copy, copied back."""
    if not run.is_process_local:
        yield run
        return
    folder = tempfile.mkdtemp(prefix="ganmill-run-")
    copy = Store(f"file://{folder}")
    try:
        for info in [*run.list("prepared/"), *run.list("checkpoints/")]:
            copy.put(info.key, run.get(info.key))
        yield copy
        for prefix in ("checkpoints/", "grids/"):
            fresh = {info.key for info in copy.list(prefix)}
            for info in run.list(prefix):
                if info.key not in fresh:
                    run.delete(info.key)
            for key in sorted(fresh, key=lambda k: k.endswith(".json")):
                run.put(key, copy.get(key))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Ending:
    """What the workers told at the end, and the metrics on the way."""

    reason: str | None = None
    stopped: bool = False
    preset: str | None = None
    model: str | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)


def _fit(config: Config, snapshot: Snapshot, shared: Store, run: Store, digest: str, progress: Progress) -> _Ending:
    """Runs the trainer in a thread and listens to the board meanwhile."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cpus = cpus_per_worker(config.train.workers)
    threads = threads_per_worker(config.train.workers)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()    # lives and dies with the driver's node
    gpu = config.train.gpus_per_worker > 0
    resources: dict[str, float] = {"CPU": cpus, **({"GPU": config.train.gpus_per_worker} if gpu else {})}
    bookkeeping = tempfile.mkdtemp(prefix="ganmill-ray-")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": Job(shared, config, snapshot, digest, threads, board)},
        scaling_config=ScalingConfig(num_workers=_worker_count(config), use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"ganmill-{digest}-{time.time_ns()}", storage_path=bookkeeping,   # an existing name is silently resumed
            failure_config=FailureConfig(max_failures=config.train.max_failures),
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    )
    ending = _Ending(metrics=_earlier_metrics(run, shared))
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as pool:
            _listen(pool.submit(trainer.fit), board, ending, run, progress)
    finally:
        shutil.rmtree(bookkeeping, ignore_errors=True)
    return ending


def _worker_count(config: Config) -> Any:             # int or (int, int); the types of Ray 2.60 know the first alone
    """As many as asked for, or (fewest, most): Ray then begins with what the cluster has, and again when that changes."""
    fewest, most = config.train.fewest_workers, config.train.workers
    return most if fewest == most else (fewest, most)


def _listen(fit: "Future[Any]", board: Any, ending: _Ending, run: Store, progress: Progress) -> None:
    """Passes on what the workers say until they end; asks them to stop when this thread is interrupted.

    Short waits, because a blocking wait on Ray can't be interrupted by a time-out or a cancellation.
    """
    import ray

    written = time.monotonic()
    try:
        while not fit.done():
            time.sleep(POLL_S)
            _hear(ray.get(board.drain.remote()), ending, progress)
            if time.monotonic() - written > METRICS_EVERY_S:
                _put_metrics(run, ending.metrics)
                written = time.monotonic()
    except BaseException:                            # Ctrl-C, SIGTERM or a cancellation: keep what was learnt, then go
        progress.note("stopping: the workers write a checkpoint")
        ray.get(board.stop.remote())
        with contextlib.suppress(Exception):
            fit.result(timeout=STOP_GRACE_S)
        _hear(ray.get(board.drain.remote()), ending, progress)
        _put_metrics(run, ending.metrics)
        raise
    _hear(ray.get(board.drain.remote()), ending, progress)
    _put_metrics(run, ending.metrics)
    error = fit.exception()
    if error is not None and ending.reason is None:
        ending.reason = _root_cause(error)


def _hear(events: list[tuple[str, Any]], ending: _Ending, progress: Progress) -> None:
    for kind, payload in events:
        if kind == "metrics":
            ending.metrics.append(payload)
            shown = {k: payload[k] for k in ("kimg", "images_per_s", "loss_d", "loss_g") if k in payload}
            progress.update(float(payload.get("progress", 0.0)), 1.0, **shown)
        elif kind == "preset":
            ending.model, ending.preset = payload["model"], payload["reason"]
            progress.note(f"model {payload['model']}: {payload['reason']}")
        elif kind == "resumed":
            ending.metrics = [m for m in ending.metrics if m.get("kimg", 0.0) <= payload]
            progress.note(f"continuing from the checkpoint at {payload:.1f} kimg")
        elif kind == "restarted":
            reason, kimg = payload
            ending.metrics = [m for m in ending.metrics if m.get("kimg", 0.0) <= kimg]
            progress.note(f"{reason}; training goes on from {kimg:.1f} kimg at half the rate, with other draws")
        elif kind == "failed":
            ending.reason = payload
        elif kind == "stopped":
            ending.stopped = True
        elif kind == "store_errors":
            troubles.add(payload)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _put_metrics(run: Store, metrics: list[dict[str, Any]]) -> None:
    if metrics:
        run.put(keys.METRICS, "".join(json.dumps(m) + "\n" for m in metrics).encode())


def load_metrics(run: Store) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, oldest first; empty when nothing was logged."""
    try:
        return [json.loads(line) for line in run.get(keys.METRICS).decode().splitlines()]
    except MissingObject:
        return []


def _earlier_metrics(run: Store, shared: Store) -> list[dict[str, Any]]:
    """Metrics up to the checkpoint from which this training continues."""
    meta = _latest_meta(shared)
    return [m for m in load_metrics(run) if meta is not None and m.get("kimg", 0.0) <= meta["kimg"]]


def _latest_meta(run: Store) -> dict[str, Any] | None:
    """The newest whole checkpoint's JSON, which is put after its weights."""
    names = _checkpoint_names(run)
    return run.get_json(names[-1]) if names else None


def _checkpoint_names(run: Store) -> list[str]:
    """Keys of all whole checkpoints' JSON, by the images that they have seen."""
    return sorted(info.key for info in run.list("checkpoints/") if info.key.endswith(".json"))


def _best_meta(run: Store) -> dict[str, Any] | None:
    """The JSON of the checkpoint with the lowest score on the val split, of equals the newest; the newest where none has one."""
    metas = [run.get_json(name) for name in _checkpoint_names(run)]
    scored = [meta for meta in metas if meta.get("validation") is not None]
    if not scored:
        return metas[-1] if metas else None
    best: dict[str, Any] = min(reversed(scored), key=lambda meta: float(meta["validation"]))
    return best


def _choice(chosen: dict[str, Any], latest: dict[str, Any]) -> str:
    """A sentence on why this checkpoint; empty where there was nothing to choose by."""
    if chosen.get("validation") is None:
        return ""
    kept = f"lowest distance to the val images ({chosen['validation']:.4f}) after {chosen['kimg']:,.1f} thousand images"
    if chosen["kimg"] == latest["kimg"]:
        return f"the last checkpoint is kept: {kept}"
    return f"not the last checkpoint is kept: {kept}, {latest.get('validation', float('nan')):.4f} at the end"


# ---- on the workers ----


def _worker(loop_config: dict[str, Any]) -> None:
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


def choose_preset(config: Config, resolution: int, counts: Sequence[int], device: str) -> tuple[Any, Any, str]:
    """(network spec, recipe, reason) for this data and config; `auto` resolved, `train.options` applied.

    Args:
        counts: training images of each class, zeros included.

    Raises:
        ConfigError: the model can't be built so; names what is possible.
    """
    from gan.augment import Augmentation
    from gan.errors import GanError
    from gan.presets import Budget, choose

    asked = config.train
    minutes = asked.budget.minutes
    try:
        spec, recipe, reason = choose(
            asked.model, resolution, 1 if config.prepare.channels == "grey" else 3, counts,
            Budget(kimg=asked.budget.kimg, seconds=None if minutes is None else 60 * minutes), device,
            batch_size=asked.batch_size, augment=Augmentation(**asked.augment.model_dump()), options=asked.options,
        )
    except GanError as e:
        raise ConfigError(f"train.model {asked.model}: {e}") from e
    for workers in range(asked.fewest_workers, asked.workers + 1):
        if recipe.batch_size % workers:
            raise ConfigError(f"train.workers: {workers} workers can't share batches of {recipe.batch_size} evenly; "
                              f"set train.batch_size to a multiple of {workers}"
                              + (", or train.min_workers higher" if asked.fewest_workers < asked.workers else ""))
    return spec, recipe, reason


def check_model(config: Config, counts: Sequence[int]) -> str:
    """Refuses a model that can't be had for such data before any work; else says which it will be and why."""
    return choose_preset(config, config.prepare.resolution, counts, "cuda" if config.train.gpus_per_worker else "cpu")[2]


def _resume_point(job: Job, rank: int) -> bytes | None:
    meta = _latest_meta(job.run)
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
        _prune(job.run)
        push("store_errors", troubles.take())

    def on_restart(reason: str, kimg: float) -> None:
        for name in _checkpoint_names(job.run):      # what came after it is no good
            if job.run.get_json(name)["kimg"] > kimg:
                _remove(job.run, name)
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


def _prune(run: Store) -> None:
    """Keeps the newest checkpoints and the best."""
    names = _checkpoint_names(run)
    if len(names) <= KEEP_CHECKPOINTS:
        return
    best = _best_meta(run)
    for name in names[:-KEEP_CHECKPOINTS]:
        if best is None or name != best["key"].removesuffix(".safetensors") + ".json":
            _remove(run, name)


def _remove(run: Store, name: str) -> None:
    """A checkpoint by its JSON's key, which goes first, so that none points at missing weights."""
    run.delete(name)
    run.delete(name.removesuffix(".json") + ".safetensors")
