"""Making all shards of a plan with a pool of workers: only specs go out, only receipts come back.

The pool is Ray actors, one process each, or threads of this process when the store lives in it. What is missing is the
plan less the valid receipts, so a resume is the same call again. A worker that dies is replaced, and what it held is
tried again, each shard at most three times; the others finish meanwhile.
"""

import functools
import hashlib
import re
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline import keys
from pipeline.cluster import cpus_per_worker, local_cpus
from pipeline.config import Config
from pipeline.errors import (
    ClusterError,
    ConfigError,
    CorruptShard,
    GanmillError,
    MissingObject,
    SamplingFailed,
    StoreError,
)
from pipeline.ledger import Ledger, Sizes
from pipeline.mint import Generate, KeptShards, Mint, MintJob, RowFilter, load_gan
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.records import Checkpoint, Receipt, ShardSpec, Snapshot
from pipeline.store import Store, compact_json, troubles

MAX_TRIES = 3                                        # of one shard
POLL_S = 0.2                                         # a wait on Ray can't be interrupted by a cancellation
START_TIMEOUT_S = 180.0                              # no worker at all for so long, and the stage gives up
READERS = 16                                         # receipts read at a time
BUNDLE_RECEIPTS = 500                                # copied into one object …
BUNDLE_BYTES = 8 * 2**20                             # … or fewer, when they list many files


def sample(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, plan: Sequence[ShardSpec], run: Store, dataset: Store,
    version: str, progress: Progress, *,
    load: Callable[[bytes], Generate] | None = None, load_filter: Callable[[Store], RowFilter] | None = None,
) -> Ledger:
    """Makes every shard of the plan that has no valid receipt yet. Ray must be initialised, see `in_process`.

    Args:
        run: the run's folder; dataset: the dataset's; version: name of the version to be.
        load: checkpoint bytes → generator; the GAN's by default.
        load_filter: run folder → filter; needed when `sample.filter` asks for one.

    Returns:
        One receipt a shard, in the plan's order.

    Raises:
        ConfigError: a filter is asked for and none can be loaded.
        SamplingFailed: some shards failed three times, or the filter rejects nearly all of a class; the rest is kept.
        StoreError: the store refused; what was finished is kept.
        ClusterError: no worker could be started.
    """
    if any(config.sample.filter.values()) and load_filter is None:
        raise ConfigError("sample.filter: this run has no classifier to filter with; leave it out")
    folder = dataset.child(keys.version(version))
    done = finished(plan, run, folder, config.seed, snapshot.classes)
    gpu = config.sample.gpus_per_worker > 0
    job = MintJob(
        seed=config.seed, classes=snapshot.classes, format=config.sample.format, checkpoint_key=checkpoint.key,
        checkpoint_sha256=checkpoint.sha256, run=run, version=folder,
        load=load or functools.partial(load_gan, device="cuda" if gpu else "cpu", truncation=config.sample.truncation),
        load_filter=load_filter,
        kept=_kept(plan, dataset, version),
    )
    all_rows = plan.rows if isinstance(plan, Plan) else sum(spec.rows for spec in plan)
    tally = _Tally(progress, all_rows, len(plan))
    for receipt in done:
        tally.add(receipt)
    tally.begin()
    missing = (spec for spec in plan if not done.has(spec.index))
    if len(done) < len(plan):
        inside = in_process(config, run, dataset)
        pool: Pool = ThreadPool(job, min(config.sample.workers, local_cpus())) if inside else RayPool(job, config)
        try:
            _drive(pool, missing, tally, _Bundler(run), done)
        finally:
            pool.close()
    return done


def _kept(plan: Sequence[ShardSpec], dataset: Store, version: str) -> KeptShards | None:
    if not isinstance(plan, Plan) or plan.kept is None:
        return None
    return KeptShards(plan.kept_shards, dataset, keys.version(plan.kept.version), keys.run(plan.kept.run_id),
                      keys.version(version))


def in_process(config: Config, *stores: Store) -> bool:
    """Whether sampling runs in threads of this process instead of on Ray: other processes can't see `memory://`."""
    return config.cluster.address == "inline" or any(store.is_process_local for store in stores)


def finished(
    plan: Sequence[ShardSpec], run: Store, version: Store, seed: int, classes: Sequence[str]
) -> Ledger:
    """Receipts of the shards that are whole in the store, by one listing of receipts and one of sizes.

    A receipt that doesn't fit the plan, or whose objects are missing or of another size, is removed together with
    those objects, so that the shard is made anew.
    """
    done, listed, strange = Ledger(len(plan)), bytearray(len(plan)), []
    for info in run.walk(keys.RECEIPTS):
        index = keys.receipt_index(info.key)
        if index is not None and index < len(plan):
            listed[index] = 1
        else:                                            # of no shard in this plan
            strange.append(info.key)
    for key in strange:
        run.delete(key)
    if not any(listed):
        return done
    sizes = Sizes(version.walk(keys.DATA))
    read, bundles_of = _read_all(run, listed)
    for spec, receipt in zip(plan, read.slots()):
        if not listed[spec.index]:
            continue
        if receipt is not None and receipt.fits(spec, seed, classes) and not _damaged(receipt, sizes):
            done.add(receipt)
            continue
        for bundle in bundles_of(spec.index):            # first the copies: they count as long as the receipt is there
            run.delete(bundle)
        run.delete(keys.receipt(spec.index))
        for bad in _damaged(receipt, sizes) if receipt is not None else ():
            version.delete(bad)
    return done


def _read_all(run: Store, listed: bytearray) -> tuple[Ledger, Callable[[int], list[str]]]:
    """The listed receipts, as far as they can be read, and the bundles that each was found in."""
    bundles = [info.key for info in run.list(keys.RECEIPT_BUNDLES)]
    read, origin = Ledger(len(listed)), array("i", [-1]) * len(listed)
    also: dict[int, list[str]] = {}                      # two drivers of a run may each have made a copy
    with ThreadPoolExecutor(READERS) as threads:
        for first in range(0, len(bundles), READERS):
            some = bundles[first:first + READERS]
            for number, copies in enumerate(threads.map(lambda key: _read_bundle(run, key), some), first):
                for receipt in copies:
                    if 0 <= receipt.index < len(listed) and listed[receipt.index]:
                        if read.has(receipt.index):
                            also.setdefault(receipt.index, []).append(bundles[number])
                        else:
                            read.add(receipt)
                            origin[receipt.index] = number
        single = [index for index in range(len(listed)) if listed[index] and not read.has(index)]
        for first in range(0, len(single), BUNDLE_RECEIPTS):
            for found in threads.map(lambda index: _read(run, index), single[first:first + BUNDLE_RECEIPTS]):
                if found is not None:
                    read.add(found)
    return read, lambda index: [*([bundles[origin[index]]] if origin[index] >= 0 else []), *also.get(index, [])]


def _read_bundle(run: Store, key: str) -> list[Receipt]:
    try:
        return [Receipt.from_json(content) for content in run.get_json(key)]
    except (StoreError, TypeError, KeyError, AttributeError):    # a copy only: the receipts themselves are read then
        return []


def _read(run: Store, index: int) -> Receipt | None:
    try:
        found = Receipt.from_json(run.get_json(keys.receipt(index)))
        return found if found.index == index else None
    except MissingObject:                                # another driver of this run removed it
        return None
    except (StoreError, TypeError, KeyError, AttributeError) as e:
        if isinstance(e, StoreError) and "not valid JSON" not in str(e):
            raise
        return None


def _damaged(receipt: Receipt, sizes: Sizes) -> list[str]:
    """Keys of the receipt's objects that are not there in their full size."""
    objects = receipt.files or ({"key": receipt.key, "bytes": receipt.bytes},)
    return [str(o["key"]) for o in objects if sizes.get(o["key"]) != o["bytes"]]


# driving


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


class _Bundler:
    """Copies receipts as they come, hundreds into one object, so that a resume need not read each by itself."""

    def __init__(self, run: Store):
        self._run = run
        self._pending: list[bytes] = []
        self._bytes = 0

    def add(self, receipt: Receipt) -> None:
        """Keeps a copy and puts the bundle when it is full."""
        self._pending.append(compact_json(vars(receipt)))
        self._bytes += len(self._pending[-1])
        if len(self._pending) >= BUNDLE_RECEIPTS or self._bytes >= BUNDLE_BYTES:
            data = b"[" + b",".join(self._pending) + b"]"
            self._run.put(keys.receipt_bundle(hashlib.sha256(data).hexdigest()), data)
            self._pending, self._bytes = [], 0


@dataclass
class _Tally:
    progress: Progress
    all_rows: int
    all_shards: int
    rows: int = 0
    shards: int = 0
    rejects: int = 0
    rows_at_start: int = 0
    started: float = 0.0

    def add(self, receipt: Receipt) -> None:
        self.rows += receipt.rows
        self.shards += 1
        self.rejects += sum(receipt.rejects.values())

    def begin(self) -> None:
        """From now on rows are made; those so far were found."""
        self.rows_at_start, self.started = self.rows, time.monotonic()
        self.tell(0)

    def tell(self, in_flight: int) -> None:
        rate = (self.rows - self.rows_at_start) / max(1e-9, time.monotonic() - self.started)
        self.progress.update(
            self.rows, self.all_rows, images_per_s=round(rate), shards=f"{self.shards}/{self.all_shards}", rejects=self.rejects,
            in_flight=in_flight, queue=self.all_shards - self.shards - in_flight,
        )


def _drive(
    pool: Pool, missing: Iterable[ShardSpec], tally: _Tally, bundler: _Bundler, done: Ledger
) -> None:
    """Keeps the pool busy until every shard has its receipt or has failed for good. Holds only what is in flight."""
    todo: Iterator[Task] = (Task(spec) for spec in missing)
    again: deque[Task] = deque()
    given_up: list[Task] = []
    in_flight, waiting = 0, next(todo, None)
    while waiting is not None or again or in_flight:
        while again and pool.submit(again[0]):
            again.popleft()
            in_flight += 1
        while waiting is not None and not again and pool.submit(waiting):
            waiting = next(todo, None)
            in_flight += 1
        for task, outcome in pool.wait(POLL_S):
            in_flight -= 1
            if isinstance(outcome, Receipt):
                done.add(outcome)
                tally.add(outcome)
                bundler.add(outcome)
            elif outcome.error is not None:
                raise outcome.error(outcome.reason)
            else:
                task.failures.append(outcome.reason)
                task.alone = task.alone or outcome.worker_lost
                (given_up if len(task.failures) >= MAX_TRIES else again).append(task)
        tally.tell(in_flight)
    if given_up:
        raise SamplingFailed(_given_up(given_up, tally))


def _given_up(tasks: list[Task], tally: _Tally) -> str:
    shown = "; ".join(f"shard {t.spec.index}: {t.failures[-1]}" for t in sorted(tasks, key=lambda t: t.spec.index)[:3])
    more = f"; and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return (f"{len(tasks)} of {tally.all_shards} shards failed {MAX_TRIES} times each ({shown}{more}); the other "
            f"{tally.shards} are kept: mend the cause and continue with the same --run-id")


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
