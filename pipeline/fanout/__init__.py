"""Making all shards of a plan with a pool of workers: only specs go out, only receipts come back.

The pool is Ray actors, one process each, or threads of this process when the store lives in it. What is missing is the
plan less the valid receipts, so a resume is the same call again. A worker that dies is replaced, and what it held is
tried again, each shard at most three times; the others finish meanwhile.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline import keys
from pipeline.cluster import local_cpus
from pipeline.config import Config
from pipeline.errors import ConfigError, SamplingFailed
from pipeline.fanout.pools import MAX_TRIES, Pool, RayPool, Task, ThreadPool
from pipeline.fanout.receipts import Bundler, finished
from pipeline.ledger import Ledger
from pipeline.mint import Generate, KeptShards, MintJob, RowFilter, load_gan
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.records import Checkpoint, Receipt, ShardSpec, Snapshot
from pipeline.store import Store

POLL_S = 0.2                                         # a wait on Ray can't be interrupted by a cancellation


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
            _drive(pool, missing, tally, Bundler(run), done)
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
    pool: Pool, missing: Iterable[ShardSpec], tally: _Tally, bundler: Bundler, done: Ledger
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
