"""The process dies at every write, and every request of an S3 server fails once: how many rows are lost, doubled, seen too early?

    python benchmarks/crash_matrix.py [--formats parquet png webdataset] [--kinds 500 503 lost cut half] [--sigkill 40]

Each line is a kind of fault. A run is plan, sampling and publication of 26 rows with a generator that paints by arithmetic.
After each fault the same run is started again; then every row is looked for by its uid, and every sha256 is computed. A reader
looks after every single write whether it sees a part of a version.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import sys
import tarfile
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
from machine import machine

sys.path.append(str(Path(__file__).resolve().parent.parent))

from pipeline import keys, seeds
from pipeline.errors import CorruptShard, GanmillError, MissingObject
from pipeline.publication import verify
from pipeline.store import objects
from tests.pipeline.crashing import Killed, Reaper, killed_at_each_write, killed_child, reaped
from tests.pipeline.small import CLASSES, SmallRun, small_run
from tests.servers import S3Server, faulty, s3_process

WANTED = {"cat": 17, "dog": 9}


@dataclasses.dataclass
class Line:
    """What a kind of fault did."""

    name: str
    points: int = 0
    faults: int = 0
    lost: int = 0
    doubled: int = 0
    damaged: int = 0
    partial: int = 0

    def check(self, run: SmallRun) -> None:
        """Counts the rows of the latest version, and objects that are not what the manifest says."""
        found = Counter(uids(run))
        wanted = {uid for name, n in WANTED.items() for uid in seeds.uids(7, CLASSES.index(name), 0, n)}
        self.lost += len(wanted - found.keys())
        self.doubled += found.total() - len(found) + len(found.keys() - wanted)
        try:
            verify(run.dataset.url, deep=True, storage_options=run.dataset.storage_options)
        except CorruptShard:
            self.damaged += 1

    def __str__(self) -> str:
        return (f"{self.name:44} {self.points:5} points, {self.faults:5} faults: {self.lost} rows lost, {self.doubled} doubled, "
                f"{self.damaged} versions damaged, {self.partial} partial versions seen")


def uids(run: SmallRun) -> Iterator[str]:
    """Of every row that a reader of the latest version finds by a plain glob over its data."""
    folder = run.dataset.child(keys.version(run.dataset.get_json(keys.LATEST)["version"]))
    for info in folder.list(keys.DATA):
        data = folder.get(info.key)
        if info.key.endswith(".parquet"):
            yield from pq.read_table(io.BytesIO(data)).column("uid").to_pylist()
        elif info.key.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                yield from (name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png"))
        elif info.key.endswith(".jsonl"):
            yield from (json.loads(line)["uid"] for line in data.decode().splitlines())


class Watching(Reaper):
    """Counts instead of failing when a reader sees a part."""

    partial = 0

    def look(self) -> None:
        """As a reader would."""
        assert self.dataset is not None
        try:
            verify(self.dataset.url)
            self.looks += 1
        except MissingObject:
            self.partial += self.dataset.exists(keys.LATEST)
        except CorruptShard:
            self.partial += 1


def memory_run(format_name: str, append: bool) -> SmallRun:
    """A run to be killed; with `append` it continues a version that is there."""
    url = f"memory://{uuid.uuid4().hex}"
    if append:
        small_run(url, "r0", format=format_name, target={"cat": 9, "dog": 5}).finish()
    return small_run(url, format=format_name)


def killed_at_every_write(format_name: str, append: bool) -> Line:
    """Before and after each."""
    line = Line(f"killed at every write, {format_name}{', appending' if append else ''}")
    for after in (False, True):
        for run, watching in killed_at_each_write(lambda: memory_run(format_name, append), after, Watching):
            line.faults += 1
            line.points += 1
            line.partial += watching.partial
            run.finish()
            line.check(run)
    return line


def killed_twice(format_name: str) -> Line:
    """At every write, and the run that resumes it at every third of its own."""
    with reaped(Reaper()) as count:
        memory_run(format_name, append=False).finish()
    line = Line(f"killed, resumed, killed again, {format_name}")
    for at in range(1, count.writes + 1):
        for again in range(1, count.writes + 1, 3):
            run = memory_run(format_name, append=False)
            for n, after in ((at, True), (again, False)):
                watching = Watching(n, after, run.dataset)
                with reaped(watching), contextlib.suppress(Killed):
                    run.finish()
                line.faults += watching.dead
                line.partial += watching.partial
            run.finish()
            line.points += 1
            line.check(run)
    return line


def sigkilled(format_name: str, points: int) -> Line:
    """A process of its own, killed by the operating system at its n-th rename or fsync on a local disk."""
    line = Line(f"SIGKILL at renames and fsyncs, {format_name}")
    for at in range(1, points + 1):
        with tempfile.TemporaryDirectory() as folder:
            run = small_run(folder, format=format_name)
            line.faults += killed_child(run, "rename" if at % 2 else "fsync", (at + 1) // 2, after=at % 4 > 1)
            run.finish()
            line.points += 1
            line.check(run)
    return line


def every_request_fails(server: S3Server, format_name: str, kind: str, lasting: bool) -> Line:
    """The n-th request, or all from the n-th until the run gives up; then the run is started again."""
    line = Line(f"S3: {kind} {'from the n-th request on' if lasting else 'at the n-th request'}, {format_name}")
    at, reached = 1, True
    while reached:
        gone = [True]

        def fault(n: int, method: str, path: str, at: int = at, gone: list[bool] = gone) -> str | None:
            return kind if gone[0] and (n >= at if lasting else n == at) else None

        with faulty(server, fault) as proxy:
            run = small_run(f"s3://{server.new_bucket()}/x", options=proxy.server.options, format=format_name)
            with contextlib.suppress(GanmillError):
                run.finish()
            gone[0] = False
            run.finish()
            reached = proxy.faults > 0
            line.faults += proxy.faults
        line.points += reached
        line.check(small_run(run.config.publish.url, options=server.options, format=format_name))
        at += 3 if lasting else 1
    return line


def main() -> None:
    """One line a kind of fault, and their sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", default=["parquet", "png", "webdataset"])
    parser.add_argument("--kinds", nargs="*", default=["500", "503", "lost", "cut", "half"])
    parser.add_argument("--sigkill", type=int, default=40, help="points a format")
    arguments = parser.parse_args()
    print(machine())
    objects.BACKOFF_S = 0.002
    lines: list[Line] = []

    def tell(work: Callable[[], Line]) -> None:
        lines.append(work())
        print(lines[-1], flush=True)

    for name in arguments.formats:
        tell(lambda name=name: killed_at_every_write(name, append=False))
        tell(lambda name=name: killed_at_every_write(name, append=True))
        tell(lambda name=name: sigkilled(name, arguments.sigkill))
    if arguments.formats:
        tell(lambda: killed_twice(arguments.formats[0]))
    if arguments.kinds:
        with s3_process() as server:
            for kind in arguments.kinds:
                tell(lambda kind=kind: every_request_fails(server, "parquet", kind, lasting=False))
            for kind in ("expired", "no bucket", "cut"):
                tell(lambda kind=kind: every_request_fails(server, "parquet", kind, lasting=True))
    total = Line("all")
    for field in ("points", "faults", "lost", "doubled", "damaged", "partial"):
        setattr(total, field, sum(getattr(line, field) for line in lines))
    print(total)
    sys.exit(bool(total.lost or total.doubled or total.damaged or total.partial))


if __name__ == "__main__":
    main()
