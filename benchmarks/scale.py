"""Many shards: what one costs the driver, what a resume costs, what memory a plan takes, how many requests a shard makes.

    python benchmarks/scale.py [--shards 10000] [--simulate 1000000] [--s3 300] [--s3-resume 10000]

Really written: `--shards` shards of ten 32×32 rows to a local folder, by Ray's workers, then resumed and verified; `--s3` shards to
an S3 server behind a proxy that counts requests; `--s3-resume` shards to that server, then resumed. Simulated: a plan of
`--simulate` shards, driven by a pool that answers at once and resumed from a store whose listing is worked out, so that what is
left is the driver's own cost; a tenth and a hundredth of it beside it, each in a process of its own, to see whether cost a shard
grows.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

sys.path.append(str(Path(__file__).resolve().parent.parent))

from pipeline import fanout, keys, publication
from pipeline.cluster import connected, local_cpus
from pipeline.config import Config, parse_config
from pipeline.fanout.pools import Outcome, Task
from pipeline.fanout.receipts import BUNDLE_RECEIPTS
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.progress import NullProgress
from pipeline.records import Checkpoint, Receipt, Scorecard, ShardSpec, Snapshot, Verdict
from pipeline.store import Store, opening
from pipeline.verification import READERS

CLASSES = tuple("0123456789")
VERSION = "v000001-20260101T000000Z-00000000"
ROWS = 10
WEIGHTS = b"a generator that paints by arithmetic"


def paint(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """uint8 (n, 1, 32, 32): a pattern of each row's seed."""
    place = np.arange(1024, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    noise = (seeds.astype(np.uint64)[:, None] + place) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(56)
    return noise.astype(np.uint8).reshape(-1, 1, 32, 32)


def load(data: bytes) -> Any:
    """Stands for `pipeline.mint.load_gan`: what is measured is all but the drawing."""
    return paint


def records() -> tuple[Snapshot, Checkpoint, Scorecard]:
    """What the stages before would have left."""
    counts = dict.fromkeys(CLASSES, 1)
    snapshot = Snapshot("", "", "digits", None, CLASSES, 32, 1, {"train": counts, "val": counts, "test": counts}, False)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    scorecard = Scorecard(10, "domain", 1.0, 1.0, "val", 1.0, 1.0, 1.0, 1.0, {}, 1.0, {}, 1.0, {}, 0.0)
    return snapshot, Checkpoint("checkpoints/c.safetensors", digest, "dcgan", "", {}, 1.0, 1.0, 1.0, "", ""), scorecard


def settings(address: str = "local") -> Config:
    """Ten rows a shard."""
    return parse_config({"name": "scale", "source": {"format": "digits"}, "cluster": {"address": address},
                         "sample": {"rows_per_shard": ROWS, "workers": local_cpus() if address == "local" else 1}})


def plan_of(shards: int) -> Plan:
    """So many shards of ten rows."""
    return Plan(CLASSES, dict.fromkeys(CLASSES, shards * ROWS // len(CLASSES)), ROWS)


def sample(config: Config, plan: Plan, dataset: Store) -> Ledger:
    """The stage, with the painter."""
    snapshot, checkpoint, _ = records()
    run = dataset.child("runs/r")
    return fanout.sample(config, snapshot, checkpoint, plan, run, dataset, VERSION, NullProgress(), load=load)


def commit(config: Config, plan: Plan, receipts: Ledger, dataset: Store) -> None:
    """The stage, without card and report."""
    snapshot, checkpoint, scorecard = records()
    publication.commit(config, snapshot, checkpoint, scorecard, Verdict(True), plan, receipts, dataset, "r", VERSION, {},
                       software={})


def really(shards: int) -> None:
    """Written, resumed, published, verified on a local disk."""
    folder = tempfile.mkdtemp()
    try:
        dataset, config, plan = Store(f"{folder}/set"), settings(), plan_of(shards)
        dataset.put("runs/r/checkpoints/c.safetensors", WEIGHTS)
        with connected(config):
            wall, cpu = time.perf_counter(), time.process_time()
            receipts = sample(config, plan, dataset)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"local: {shards:,} shards of {ROWS} rows in {wall:.1f} s, {shards / wall:,.0f} shards/s; the driver's CPU "
                  f"{1000 * cpu / shards:.2f} ms a shard")
        again = timed(lambda: sample(config, plan, dataset))
        published = timed(lambda: commit(config, plan, receipts, dataset))
        checked = timed(lambda: publication.verify(dataset.url))
        plain = timed(lambda: read_and_hash(Path(folder)))
        print(f"local: resume of {shards:,} finished shards {again:.2f} s; commit {published:.2f} s; verify {checked:.2f} s, "
              f"where reading and hashing the same files without looking takes {plain:.2f} s", flush=True)
    finally:
        shutil.rmtree(folder)


def read_and_hash(folder: Path) -> None:
    """What no verification can do without, by as many threads."""
    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(lambda path: hashlib.sha256(path.read_bytes()).digest(), folder.glob("set/versions/*/data/*")))


def timed(work: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def on_s3(shards: int) -> None:
    """Requests a shard, as they arrive at an S3 server of another process."""
    from tests.servers import faulty, s3_process

    with s3_process() as server, faulty(server) as proxy:
        dataset, config = Store(f"s3://{server.new_bucket()}/set", proxy.server.options), settings("inline")
        dataset.put("runs/r/checkpoints/c.safetensors", WEIGHTS)
        plan, stages = plan_of(shards), {}
        receipts = sample(config, plan, dataset)
        stages["sample"] = list(proxy.seen)
        proxy.seen.clear()
        sample(config, plan, dataset)
        stages["resume"] = list(proxy.seen)
        proxy.seen.clear()
        commit(config, plan, receipts, dataset)
        stages["commit"] = list(proxy.seen)
        for name, seen in stages.items():
            kinds = Counter(kind(method, path) for method, path in seen)
            print(f"S3, {shards} shards, {name}: " + ", ".join(f"{n} {k}" for k, n in kinds.most_common())
                  + f"; {len(seen) / shards:.2f} requests a shard")


def resume_on_s3(shards: int) -> None:
    """Seconds until the driver knows that nothing is missing."""
    from tests.servers import s3_process

    with s3_process() as server:
        dataset, config = Store(f"s3://{server.new_bucket()}/set", server.options), settings("inline")
        dataset.put("runs/r/checkpoints/c.safetensors", WEIGHTS)
        plan = plan_of(shards)
        written = timed(lambda: sample(config, plan, dataset))
        resumed = timed(lambda: sample(config, plan, dataset))
        print(f"S3: {shards:,} shards written in {written:.0f} s, resumed in {resumed:.2f} s", flush=True)


def kind(method: str, path: str) -> str:
    """LIST is a GET of a bucket."""
    return "LIST" if method == "GET" and "list-type=" in path else method


# simulated


class Simulated:
    """A backend whose objects are worked out when asked for: the run has finished all of the plan, and keeps nothing."""

    conditions = True

    def __init__(self, plan: Plan):
        self._plan, self.requests, self.written = plan, Counter[str](), list[int]()

    def list(self, folder: str) -> Iterator[tuple[str, int, None]]:
        """Receipts, their bundles or the data, as the folder's name says."""
        count, name = len(self._plan), folder.rpartition("/")[2]
        if name == keys.RECEIPT_BUNDLES:
            names = (f"{b:016x}.json" for b in range(-(-count // BUNDLE_RECEIPTS)))
        elif name == keys.RECEIPTS:
            names = (f"{i:05d}.json" for i in range(count))
        else:
            prefix = "" if name == keys.DATA else f"{keys.DATA}/"
            names = (prefix + shard_key(i, count).removeprefix(f"{keys.DATA}/") for i in range(count))
        self.requests["list"] += -(-count // 1000)
        return ((name, 4000, None) for name in names)

    def get(self, path: str) -> tuple[bytes, str]:
        """A bundle."""
        self.requests["get"] += 1
        if keys.RECEIPT_BUNDLES not in path:
            raise FileNotFoundError(path)
        first = int(path.rpartition("/")[2].removesuffix(".json"), 16) * BUNDLE_RECEIPTS
        specs = self._plan[first:first + BUNDLE_RECEIPTS]
        return json.dumps([vars(receipt_of(spec)) for spec in specs]).encode(), ""

    def page(self, folder: str, token: str | None) -> tuple[Iterator[tuple[str, int, None]], None]:
        """All, one by one."""
        return self.list(folder), None

    def put(self, path: str, data: bytes) -> None:
        """Weighed and dropped."""
        self.requests["put"] += 1
        self.written.append(len(data))

    def __getattr__(self, name: str) -> Any:
        def nothing(*args: Any) -> None:
            self.requests[name] += 1

        return nothing


def shard_key(index: int, of: int) -> str:
    """A key with a hash in it, as a shard has one."""
    return keys.parquet_shard(index, of, hashlib.sha256(b"%d" % index).hexdigest())


def receipt_of(spec: ShardSpec) -> Receipt:
    """What a worker would answer."""
    digest = hashlib.sha256(b"%d" % spec.index).hexdigest()
    return Receipt(spec.index, keys.parquet_shard(spec.index, spec.of, digest), spec.rows,
                   {CLASSES[part.label]: part.count for part in spec.parts}, 4000, digest, 0, seconds=0.1)


class InstantPool:
    """Has made every shard at once."""

    def __init__(self, *ignored: Any):
        self._tasks: list[Task] = []

    def submit(self, task: Task) -> bool:
        """Room for sixteen."""
        if len(self._tasks) >= 16:
            return False
        self._tasks.append(task)
        return True

    def wait(self, timeout_s: float) -> list[Outcome]:
        """All of them."""
        tasks, self._tasks = self._tasks, []
        return [(task, receipt_of(task.spec)) for task in tasks]

    def close(self) -> None:
        """Nothing to end."""


def peak_mib() -> float:
    """Largest resident size of this process so far; getrusage would begin with that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def simulate(shards: int, resumed: bool) -> None:
    """One line: seconds and memory of the driver for so many shards, made or found finished."""
    plan, config, dataset = plan_of(shards), settings("inline"), Store("memory://scale/set")
    backend = Simulated(plan)
    opening.backend = lambda *ignored: backend  # type: ignore[assignment]
    before = peak_mib()
    if resumed:
        seconds = timed(lambda: sample(config, plan, dataset))
    else:
        fanout.finished = lambda *ignored: Ledger(shards)  # type: ignore[assignment]
        fanout.ThreadPool = InstantPool  # type: ignore[assignment, misc]
        seconds = timed(lambda: sample(config, plan, dataset))
    told = ", ".join(f"{n:,} {name}" for name, n in backend.requests.items())
    print(f"simulated: {shards:9,} shards {'resumed' if resumed else 'driven ':7} {seconds:6.1f} s, "
          f"{1e6 * seconds / shards:5.0f} µs a shard; {peak_mib() - before:6.0f} MiB more at the peak, "
          f"{(peak_mib() - before) * 2**20 / shards:5.0f} bytes a shard; {told or 'no requests'}", flush=True)


def simulate_manifest(shards: int) -> None:
    """One line: seconds and memory of checking the set, building the manifest and splitting it."""
    plan, config, dataset = plan_of(shards), settings("inline"), Store("memory://scale/set")
    backend = Simulated(plan)
    receipts = Ledger(shards)
    for spec in plan:
        receipts.add(receipt_of(spec))
    opening.backend = lambda *ignored: backend  # type: ignore[assignment]
    before = peak_mib()
    seconds = timed(functools.partial(commit, config, plan, receipts, dataset))
    print(f"simulated: {shards:9,} shards committed {seconds:4.1f} s, {1e6 * seconds / shards:5.0f} µs a shard; "
          f"{peak_mib() - before:6.0f} MiB more at the peak; {len(backend.written)} objects put, the largest "
          f"{max(backend.written) / 2**20:.1f} MiB", flush=True)


def main() -> None:
    """Prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--simulate", type=int, default=1_000_000)
    parser.add_argument("--s3", type=int, default=300, help="0: leave it out")
    parser.add_argument("--s3-resume", type=int, default=10_000, help="0: leave it out")
    arguments = parser.parse_args()
    print(machine())
    if arguments.shards:
        really(arguments.shards)
    if arguments.s3:
        on_s3(arguments.s3)
    if arguments.s3_resume:
        resume_on_s3(arguments.s3_resume)
    context = multiprocessing.get_context("spawn")
    for count in (arguments.simulate // 100, arguments.simulate // 10, arguments.simulate):
        for work, details in ((simulate, (count, False)), (simulate, (count, True)), (simulate_manifest, (count,))):
            process = context.Process(target=work, args=details)
            process.start()
            process.join()


if __name__ == "__main__":
    main()
