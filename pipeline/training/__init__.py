"""Training the generator with Ray Train.

The loop itself is plain torch (`gan.loop`); here it is given data, workers, a place for its checkpoints and a board to
tell its progress on. Checkpoints go to the run folder, not to Ray's own storage: one mechanism then serves a worker
lost in mid-training, a Ctrl-C, and a driver that was killed.
"""

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipeline import keys
from pipeline.cluster import cpus_per_worker, lost, threads_per_worker
from pipeline.config import Config
from pipeline.errors import Interrupted, MissingObject, RunMismatch, TrainingFailed
from pipeline.progress import Progress
from pipeline.records import Checkpoint, Snapshot
from pipeline.store import Store, troubles
from pipeline.training.board import Board
from pipeline.training.checkpoints import best_and_lowest, choice, earlier_metrics, latest_meta, load_metrics, put_metrics
from pipeline.training.preset import check_model, choose_preset, train_counts
from pipeline.training.worker import Job, worker

__all__ = ["check_model", "choose_preset", "load_metrics", "train", "train_counts"]

METRICS_EVERY_S = 5.0
POLL_S = 0.5
STOP_GRACE_S = 60.0


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
    latest, (meta, lowest) = latest_meta(run), best_and_lowest(run)
    if latest is None or meta is None:
        raise TrainingFailed("training ended without a checkpoint; see the worker's log above")
    checkpoint = Checkpoint(
        key=meta["key"], sha256=meta["sha256"], model=meta["spec"]["family"], preset=meta["preset"], net=meta["spec"],
        trained_kimg=meta["kimg"], images_per_s=1000 * latest["kimg"] / max(latest["elapsed_s"], 1e-9),
        seconds=latest["elapsed_s"], config_digest=digest, train_fingerprint=snapshot.fingerprint,
        validation=meta.get("validation"), choice=choice(meta, latest, lowest), restarts=tuple(latest.get("restarts", ())),
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
    from ray.train.torch import TorchConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipeline.training.trainer import Trainer

    cpus = cpus_per_worker(config.train.workers)
    threads = threads_per_worker(config.train.workers)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()    # lives and dies with the driver's node
    gpu = config.train.gpus_per_worker > 0
    resources: dict[str, float] = {"CPU": cpus, **({"GPU": config.train.gpus_per_worker} if gpu else {})}
    bookkeeping = tempfile.mkdtemp(prefix="ganmill-ray-")
    trainer = Trainer(
        config.cluster.address == "local", worker,
        train_loop_config={"job": Job(shared, config, snapshot, digest, threads, board)},
        scaling_config=ScalingConfig(num_workers=_worker_count(config), use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"ganmill-{digest}-{time.time_ns()}", storage_path=bookkeeping,   # an existing name is silently resumed
            failure_config=FailureConfig(max_failures=config.train.max_failures),
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
    )
    ending = _Ending(metrics=earlier_metrics(run, shared))
    try:
        _listen(_beside(trainer.fit), board, ending, run, progress)
    finally:
        shutil.rmtree(bookkeeping, ignore_errors=True)
    return ending


def _beside(work: Callable[[], Any]) -> "Future[Any]":
    """Does the work in a thread that nobody waits for: when a cluster has died under it, it may hang for good."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as e:  # noqa: BLE001  whoever asks for the result gets it
            future.set_exception(e)

    threading.Thread(target=run, daemon=True, name="ray-train").start()
    return future


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
                put_metrics(run, ending.metrics)
                written = time.monotonic()
    except BaseException:                            # Ctrl-C, SIGTERM or a cancellation: keep what was learnt, then go
        progress.note("stopping: the workers write a checkpoint")
        board.stop.remote()
        deadline = time.monotonic() + STOP_GRACE_S
        while not fit.done() and time.monotonic() < deadline and not lost():
            time.sleep(POLL_S)
        if not lost():
            _hear(ray.get(board.drain.remote()), ending, progress)
        put_metrics(run, ending.metrics)
        raise
    _hear(ray.get(board.drain.remote()), ending, progress)
    put_metrics(run, ending.metrics)
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
