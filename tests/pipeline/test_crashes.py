"""The process dies before and after every write, in every order that comes up; then it is started again.

After each: exact rows per class, every sha256 right, nothing doubled, and no reader ever saw a part of a version.
"""

import errno
import os
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keys
from pipeline.errors import GanmillError, PublicationConflict, StoreError
from pipeline.publication import verify
from pipeline.store import local, objects
from tests.pipeline.crashing import BEFORE_OR_AFTER, assert_whole, die, killed_at_each_write, killed_child, memory_run
from tests.pipeline.small import SmallRun, small_run
from tests.servers import S3Server, faulty

FORMATS = ["parquet", "png", "webdataset"]


@BEFORE_OR_AFTER
@pytest.mark.parametrize("format_name", FORMATS)
def test_killed_at_every_write(format_name: str, after: bool) -> None:
    names = []
    for run, _ in killed_at_each_write(lambda: memory_run(format=format_name), after):
        names.append(run.finish().name[:7])
        assert_whole(run)
    assert len(names) >= 15 and set(names) == {"v000001"}


@BEFORE_OR_AFTER
def test_killed_at_every_write_beside_an_older_version(after: bool) -> None:
    """The older version stays whole and visible until the newer one is."""
    def prepared() -> SmallRun:
        run = memory_run(target={"per_class": 2})
        old.append(run.finish().name)
        return small_run(run.config.publish.url, "r2")

    old: list[str] = []
    for run, reaper in killed_at_each_write(prepared, after):
        assert reaper.looks >= reaper.at - 1       # at each write there was a whole version to be seen
        assert run.finish().name.startswith("v000002")
        assert_whole(run)
        verify(f"{run.dataset.url}/versions/{old[-1]}", deep=True)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(1, 25), st.booleans()), max_size=6), st.sampled_from(FORMATS))
def test_killed_again_and_again(crashes: list[tuple[int, bool]], format_name: str) -> None:
    run = memory_run(format=format_name)
    for at, after in crashes:
        die(run, at, after, watch=True)
    run.finish()
    assert_whole(run)


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 25), st.booleans()), max_size=6))
def test_two_runs_that_die_in_turns(crashes: list[tuple[int, int, bool]]) -> None:
    """Each ends with its rows published; the history has no more than both."""
    first = memory_run()
    runs = [first, small_run(first.config.publish.url, "r2", target={"per_class": 3})]
    for which, at, after in crashes:
        die(runs[which], at, after, watch=True)
    names = []
    for run in runs:
        try:
            names.append(run.finish().name)
        except PublicationConflict:                      # the other's came out between this one's plan and its commit
            names.append(run.finish().name)
    assert len(set(names)) == 2
    for name, rows in zip(names, (26, 9)):
        assert verify(f"{first.dataset.url}/versions/{name}", deep=True)["rows"] == rows


# real kills


@pytest.mark.parametrize(("format_name", "calls", "points"), [
    ("parquet", "rename", range(1, 14, 3)), ("parquet", "fsync", range(1, 27, 4)), ("png", "rename", range(4, 40, 9)),
])
def test_sigkill_in_the_middle_of_local_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str, calls: str, points: range
) -> None:
    monkeypatch.setattr(local, "SYNC_TOGETHER", 4)       # files of a shard go to disk together, as hundreds do
    died = 0
    for at in points:
        run = small_run(str(tmp_path / f"{calls}{at}"), format=format_name)
        died += killed_child(run, calls, at, after=at % 2 == 0)
        run.finish()
        assert_whole(run)
        seen = {path.suffix for path in Path(run.dataset.url).glob("versions/*/data/**/[!.]*") if path.is_file()}
        assert seen == ({".parquet"} if format_name == "parquet" else {".png", ".jsonl"})
    assert died >= len(points) // 2


def test_half_written_files_are_swept_when_they_are_old(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    receipts = run.sample()
    folder = Path(run.dataset.url) / "versions" / run.plan()[1].version / "data"
    old, new = folder / ".x.1.ganmill-tmp", folder / ".x.2.ganmill-tmp"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    run.publish(receipts)
    assert not old.exists() and new.exists()
    assert_whole(run)


# stores that fail


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "BACKOFF_S", 0.001)


@pytest.mark.parametrize("format_name", ["parquet", "png"])
@pytest.mark.parametrize("kind", ["500", "503", "lost", "cut", "half"])
def test_a_tenth_of_the_requests_fails(s3_server: S3Server, no_waiting: None, format_name: str, kind: str) -> None:
    dice = random.Random(f"{format_name}{kind}")
    with faulty(s3_server, lambda n, method, path: kind if dice.random() < 0.12 else None) as proxy:
        run = small_run(f"s3://{s3_server.new_bucket()}/x", options=proxy.server.options, format=format_name)
        version = run.finish()
        assert run.finish() == version
        assert proxy.faults > 1
    direct = small_run(run.config.publish.url, options=s3_server.options, format=format_name)
    assert_whole(direct)


@pytest.mark.parametrize("patience_s", [60.0, 0.5], ids=["waited for", "given up"])
def test_a_tenth_of_the_replies_is_slow(s3_server: S3Server, no_waiting: None, patience_s: float) -> None:
    """A reply that is waited for costs time; one that is given up was carried out all the same, and is read back."""
    dice = random.Random(patience_s)
    with faulty(s3_server, lambda n, method, path: "slow" if dice.random() < 0.1 else None) as proxy:
        options = {**proxy.server.options, "config_kwargs": {"read_timeout": patience_s}}
        run = small_run(f"s3://{s3_server.new_bucket()}/x", options=options)
        version = run.finish()
        assert run.finish() == version and proxy.faults > 1
    assert_whole(small_run(run.config.publish.url, options=s3_server.options))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "lost", "cut"])
def test_each_single_request_fails_once(s3_server: S3Server, no_waiting: None, kind: str) -> None:
    at, total = 1, 10**6
    while at <= total:
        with faulty(s3_server, lambda n, method, path, at=at: kind if n == at else None) as proxy:
            run = small_run(f"s3://{s3_server.new_bucket()}/x", options=proxy.server.options)
            run.finish()
            total = len(proxy.seen)
        assert_whole(small_run(run.config.publish.url, options=s3_server.options))
        at += 1
    assert at > 25


@pytest.mark.parametrize(("kind", "message"), [
    ("no bucket", "the bucket does not exist"), ("expired", "the credentials have expired; renew them"),
    ("denied", "no permission"), ("503", "tried 6 times"),
])
@pytest.mark.parametrize("from_request", [1, pytest.param(10, marks=pytest.mark.slow), 20])
def test_the_store_vanishes_in_mid_run(
    s3_server: S3Server, no_waiting: None, kind: str, message: str, from_request: int
) -> None:
    gone = [from_request]
    with faulty(s3_server, lambda n, method, path: kind if n >= gone[0] else None) as proxy:
        run = small_run(f"s3://{s3_server.new_bucket()}/x", options=proxy.server.options)
        with pytest.raises(StoreError, match=message) as told:
            run.finish()
        assert "canary" not in str(told.value) and len(proxy.seen) < from_request + 40   # bounded tries
        gone[0] = 10**9                                  # it is back
        run.finish()
    assert_whole(small_run(run.config.publish.url, options=s3_server.options))


@pytest.mark.parametrize("from_write", [1, 5, 11, 17, 23, 29])
def test_the_disk_fills_up_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_write: int) -> None:
    run, writes, real = small_run(str(tmp_path)), [0], os.fsync

    def full(descriptor: int) -> None:
        writes[0] += 1
        if writes[0] >= from_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="the disk is full; free some space and continue with the same --run-id"):
            run.finish()
    assert not run.dataset.exists(keys.LATEST)
    run.finish()
    assert_whole(run)


@pytest.mark.parametrize("where", ["local", "memory", "s3"])
def test_two_drivers_of_the_same_run(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url, options = str(tmp_path), {}
    if where == "memory":
        url = f"memory://{uuid.uuid4().hex}"
    elif where == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        url, options = f"s3://{server.new_bucket()}/x", server.options
    for format_name in ("parquet", "png"):
        drivers = [small_run(f"{url}/{format_name}", options=options, format=format_name) for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            versions = [future.result() for future in [threads.submit(driver.finish) for driver in drivers]]
        assert versions[0] == versions[1]
        assert_whole(drivers[0])


@pytest.mark.slow
def test_no_error_leaves_as_anything_but_a_named_one(s3_server: S3Server, no_waiting: None) -> None:
    dice = random.Random(3)
    for _ in range(6):
        kinds = dice.choices(["500", "503", "lost", "cut", "half", "denied", "expired", "no bucket"], k=3)
        with faulty(s3_server, lambda *a, kinds=kinds: dice.choice(kinds) if dice.random() < 0.15 else None) as proxy:
            run = small_run(f"s3://{s3_server.new_bucket()}/x", options=proxy.server.options)
            for _ in range(30):
                try:
                    run.finish()
                    break
                except GanmillError as e:
                    assert "canary" not in str(e)
        direct = small_run(run.config.publish.url, options=s3_server.options)
        direct.finish()
        assert_whole(direct)
