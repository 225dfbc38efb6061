"""Pools of workers that make shards: threads of this process, or Ray actors of a process each."""

import re
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.cluster import cpus_per_worker
from pipeline.config import Config
from pipeline.errors import ClusterError, CorruptShard, GanmillError, SamplingFailed, StoreError
from pipeline.mint import Mint, MintJob
from pipeline.records import Receipt, ShardSpec
from pipeline.store import troubles

MAX_TRIES = 3                                        # of one shard
START_TIMEOUT_S = 180.0                              # no worker at all for so long, and the stage gives up


@dataclass(frozen=True)
class Failure:
    """Why a shard was not made this time; crosses from a worker to the driver."""

    reason: str
    error: type[GanmillError] | None = None              # named errors end the stage at once: another try won't help
    worker_lost: bool = False


@dataclass
class Task:
    """A shard on its way."""

    spec: ShardSpec
    failures: list[str] = field(default_factory=list)
    alone: bool = False                                  # it was there when a worker died: nothing else beside it now


Outcome = tuple[Task, Receipt | Failure]


class Pool(Protocol):
    """Workers that make shards."""

    def submit(self, task: Task) -> bool:
        """Starts the task if there is room for it."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """What has ended since, after at most `timeout_s`."""

    def close(self) -> None:
        """Ends all workers, in the middle of a shard too."""


def _attempt(mint: Mint, spec: ShardSpec) -> Receipt | Failure:
    """A worker's boundary: what went wrong is recorded here and told to the driver in plain words."""
    try:
        return mint.make(spec)
    except (StoreError, SamplingFailed, CorruptShard) as e:
        return Failure(str(e), type(e))
    except Exception as e:  # noqa: BLE001  anything may go wrong in a model; the driver decides on another try
        if type(e).__module__.startswith("gan."):
            return Failure(f"the generator can't be used: {e}", SamplingFailed)
        return Failure(f"{type(e).__name__}: {' '.join(str(e).split())[:500]}")


class ThreadPool:
    """Workers in this process: `drawing` shards are drawn while one more is encoded and put."""

    def __init__(self, job: MintJob, drawing: int = 1):
        import torch

        self._mint, self._depth = Mint(job, drawing), drawing + 1
        self._threads = ThreadPoolExecutor(self._depth)
        self._tasks: dict[Future[Receipt | Failure], Task] = {}
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)                         # as in `_Minter`

    def submit(self, task: Task) -> bool:
        """As `Pool.submit`."""
        if len(self._tasks) >= self._depth:
            return False
        self._tasks[self._threads.submit(_attempt, self._mint, task.spec)] = task
        return True

    def wait(self, timeout_s: float) -> list[Outcome]:
        """As `Pool.wait`."""
        ended, _ = wait(self._tasks, timeout_s, FIRST_COMPLETED)
        return [(self._tasks.pop(future), future.result()) for future in ended]

    def close(self) -> None:
        """As `Pool.close`; a thread can't be killed, so the shards in flight end first."""
        import torch

        self._threads.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)


# Ray


@dataclass
class _Worker:
    actor: Any
    ready: Any                                           # the reference of its first call, None once that returned
    tasks: dict[Any, Task] = field(default_factory=dict)

    @property
    def exclusive(self) -> bool:
        return any(task.alone for task in self.tasks.values())


class RayPool:
    """Actors, one process each, that draw single-threaded on the CPU, so that a shard has the same bytes everywhere.

    An actor with n CPUs draws n shards at a time and encodes and puts one more, so `workers` · (n + 1) shards are in
    memory, however long the plan is.
    """

    def __init__(self, job: MintJob, config: Config):
        import ray

        self._ray = ray
        self._gpus = config.sample.gpus_per_worker
        self._cpus = cpus_per_worker(config.sample.workers)
        self._drawing = 1 if self._gpus else self._cpus
        self._depth = self._drawing + (self._cpus if self._gpus else 1)
        self._job = ray.put(job)
        self._losses, self._size = 0, config.sample.workers
        self._last_alive = time.monotonic()
        self._workers = [self._start() for _ in range(self._size)]

    def submit(self, task: Task) -> bool:
        """As `Pool.submit`. A task that saw a worker die gets a worker to itself."""
        limit = 1 if task.alone else self._depth
        free = [w for w in self._workers if w.ready is None and len(w.tasks) < limit and not w.exclusive]
        if not free:
            return False
        worker = min(free, key=lambda w: len(w.tasks))
        try:
            worker.tasks[worker.actor.make.remote(task.spec)] = task
        except self._ray.exceptions.RayError:            # died this moment: `wait` will notice
            return False
        return True

    def wait(self, timeout_s: float) -> list[Outcome]:
        """As `Pool.wait`; workers that died are replaced."""
        calls = {ref: w for w in self._workers for ref in ([w.ready] if w.ready is not None else list(w.tasks))}
        self._ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        ended, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        outcomes: list[Outcome] = []
        for ref in ended:
            worker = calls[ref]
            try:
                result = self._ray.get(ref)
            except self._ray.exceptions.RayError as e:
                outcomes += self._lost(worker, ref, e)
                continue
            if ref == worker.ready:
                worker.ready = None
            else:
                made, failed_requests = result
                troubles.add(failed_requests)
                outcomes.append((worker.tasks.pop(ref), made))
        self._check_alive()
        return outcomes

    def close(self) -> None:
        """As `Pool.close`."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers = []

    def _start(self) -> _Worker:
        actor: Any = self._ray.remote(_Minter).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_task_retries=0,
            max_concurrency=self._depth + 1,
        ).remote(self._job, self._drawing, bool(self._gpus))
        return _Worker(actor, actor.ready.remote())

    def _lost(self, worker: _Worker, ref: Any, error: Exception) -> list[Outcome]:
        """Takes a dead worker's shards back and starts another in its place."""
        if worker not in self._workers:                  # seen already by another of its calls
            return []
        self._losses += 1
        why = _cause(error)
        if worker.ready is not None and self._losses > MAX_TRIES * self._size:
            raise ClusterError(f"sampling workers die while they start: {why}; check that every node has memory enough "
                               "and the same ganmill")
        self._ray.kill(worker.actor)
        self._workers.remove(worker)
        self._workers.append(self._start())
        return [(task, Failure(f"its worker died: {why}", worker_lost=True)) for task in worker.tasks.values()]

    def _check_alive(self) -> None:
        if any(w.ready is None for w in self._workers):
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > START_TIMEOUT_S:
            raise ClusterError(
                f"no sampling worker could start within {START_TIMEOUT_S:.0f} s: each asks for {self._cpus} CPUs and "
                f"{self._gpus:g} GPUs; lower sample.workers or sample.gpus_per_worker, or add nodes"
            )


def _cause(error: Exception) -> str:
    """Ray's account of a death in one line: the error at the end of a worker's traceback, else its first line."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*:", line)]
    return (named[-1] if named else lines[0] if lines else type(error).__name__)[:300]


class _Minter:
    """The actor. Its constructor does nothing that can fail, so that every reason reaches the driver."""

    def __init__(self, job: MintJob, drawing: int, gpu: bool):
        import torch

        from gan.allocator import keep_freed_memory

        keep_freed_memory()
        if not gpu:
            torch.set_num_threads(1)                     # sums in the same order however many workers there are
        self._mint = Mint(job, drawing)

    def ready(self) -> bool:
        return True

    def make(self, spec: ShardSpec) -> tuple[Receipt | Failure, int]:
        """The shard's receipt, and how many requests to the store failed on the way."""
        return _attempt(self._mint, spec), troubles.take()
