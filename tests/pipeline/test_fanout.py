"""The fan-out: the same rows from any number of workers; whoever dies, the plan is filled exactly once."""

import dataclasses
import functools
import re
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import fanout, keys
from pipeline.cluster import connected
from pipeline.config import parse_config
from pipeline.errors import ConfigError, CorruptShard, SamplingFailed, StoreError
from pipeline.fanout import receipts as receipts_room
from pipeline.mint import Generate
from pipeline.progress import NullProgress
from pipeline.publication import verify
from pipeline.records import Receipt
from pipeline.seeds import uid
from pipeline.store import Store
from tests.pipeline.small import (
    CHECKPOINT,
    CLASSES,
    SNAPSHOT,
    SmallRun,
    load_deadly,
    load_every_third,
    load_painter,
    load_slow,
    paint,
    small_run,
)


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


class Told(NullProgress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float | None, dict[str, Any]]] = []

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """Kept."""
        self.updates.append((done, total, figures))


def sampled(run: SmallRun, load: Callable[[bytes], Generate] = load_painter, **changes: Any) -> list[Receipt]:
    """`run.sample` with its progress."""
    return run.sample(load=load, **changes)


def test_receipts_say_what_lies_there(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    receipts = run.sample()
    plan, record = run.plan()
    folder = run.dataset.child(keys.version(record.version))
    assert [r.index for r in receipts] == [0, 1, 2, 3]
    assert sum((Counter(r.rows_per_class) for r in receipts), Counter()) == {"cat": 17, "dog": 9}
    for receipt, spec in zip(receipts, plan):
        assert Receipt.from_json(run.folder.get_json(keys.receipt(spec.index))) == receipt
        assert (receipt.rows, receipt.seed, receipt.rejects) == (spec.rows, 7, {})
        rows = pq.read_table(f"{folder.url}/{receipt.key}").to_pylist()
        assert Counter(CLASSES[row["label"]] for row in rows) == receipt.rows_per_class


def test_progress_is_told() -> None:
    run, told = small_run(memory()), Told()
    plan, record = run.plan()
    fanout.sample(run.config, SNAPSHOT, CHECKPOINT, plan, run.folder, run.dataset, record.version, told,
                  load=load_painter)
    assert told.updates[0][:2] == (0, 26) and told.updates[-1][:2] == (26, 26)
    assert told.updates[-1][2]["shards"] == "4/4"


def test_what_has_a_receipt_is_not_made_again(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    receipts = run.sample()
    run.folder.delete(keys.receipt(1))
    drawn: list[int] = []

    def load(data: bytes) -> Generate:
        def count(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            drawn.append(len(labels))
            return paint(labels, seeds)

        return count

    again = sampled(run, load)
    assert drawn == [7]
    assert [dataclasses.replace(r, seconds=0) for r in again] == [dataclasses.replace(r, seconds=0) for r in receipts]


@pytest.mark.parametrize("format_name", ["parquet", "png"])
@pytest.mark.parametrize("damage", ["object gone", "object short", "no JSON", "other seed", "other rows", "no receipt"])
def test_a_receipt_counts_only_if_its_shard_is_whole(tmp_path: Path, format_name: str, damage: str) -> None:
    run = small_run(str(tmp_path), format=format_name)
    whole = run.sample()
    folder = run.dataset.child(keys.version(run.plan()[1].version))
    receipt, key = whole[2], keys.receipt(2)
    at = receipt.files[1]["key"] if receipt.files else receipt.key
    data = folder.get(at)
    if damage == "object gone":
        folder.delete(at)
    elif damage == "object short":
        folder.put(at, data[:-3])
    elif damage == "no JSON":
        run.folder.put(key, b"{")
    elif damage == "no receipt":
        run.folder.put(key, b"[]")
    else:
        change = {"seed": 8} if damage == "other seed" else {"rows_per_class": {"cat": 7}}
        run.folder.put_json(key, dataclasses.replace(receipt, **change).to_json())
    again = run.sample()
    assert folder.get(at) == data
    assert [dataclasses.replace(r, seconds=0) for r in again] == [dataclasses.replace(r, seconds=0) for r in whole]
    verify(run.publish(again).url, deep=True)


def test_receipts_of_no_shard_are_cleared_away() -> None:
    run = small_run(memory())
    run.sample()
    run.folder.put(keys.receipt(77), run.folder.get(keys.receipt(1)))
    run.sample()
    assert not run.folder.exists(keys.receipt(77))


def test_a_resume_reads_bundles_instead_of_every_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_room, "BUNDLE_RECEIPTS", 4)
    run = small_run(str(tmp_path), rows_per_shard=1)
    receipts = run.sample()
    assert len(run.folder.list(keys.RECEIPT_BUNDLES)) == 6
    read: list[str] = []
    before = Store.get

    def get(self: Store, key: str) -> bytes:
        read.append(key)
        return before(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "get", get)
        assert run.sample() == receipts
    assert sum(key.startswith(keys.RECEIPTS + "/") for key in read) == 2        # 26 less six bundles of four
    folder = run.dataset.child(keys.version(run.plan()[1].version))
    folder.delete(receipts[5].key)                       # a copy of a receipt whose shard is gone counts no more
    run.folder.delete(keys.receipt(9))                   # nor one whose receipt is gone
    run.folder.put(run.folder.list(keys.RECEIPT_BUNDLES)[0].key, b"{")
    again = run.sample()
    assert [dataclasses.replace(r, seconds=0) for r in again] == [dataclasses.replace(r, seconds=0) for r in receipts]
    assert verify(run.publish(again).url, deep=True)["rows"] == 26


def failing(fault: Callable[[int], None]) -> Callable[[bytes], Generate]:
    """A generator that does `fault` with the number of its call before it paints."""
    calls: list[int] = []

    def load(data: bytes) -> Generate:
        def generate(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            calls.append(1)
            fault(len(calls))
            return paint(labels, seeds)

        return generate

    return load


def test_a_shard_is_tried_three_times() -> None:
    def twice(call: int) -> None:
        if call <= 2:
            raise RuntimeError("CUDA error: out of memory")

    assert len(small_run(memory(), target={"cat": 5}).sample(load=failing(twice))) == 1


def test_a_shard_that_always_fails_leaves_the_others_finished(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))

    def load(data: bytes) -> Generate:
        def generate(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            if len(labels) == 5:                         # the last shard alone is that short
                raise ValueError("odd batch")
            return paint(labels, seeds)

        return generate

    with pytest.raises(SamplingFailed, match=r"1 of 4 shards failed 3 times each \(shard 3: ValueError: odd batch\); "
                                             "the other 3 are kept"):
        run.sample(load=load)
    assert len(run.folder.list(keys.RECEIPTS)) == 3
    assert len(run.sample()) == 4


def test_a_store_that_refuses_ends_the_stage_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, drawn = small_run(str(tmp_path), rows_per_shard=1), []
    run.plan()

    def refuse(self: Store, key: str, data: bytes) -> None:
        raise StoreError("can't write there: the disk is full")

    monkeypatch.setattr(Store, "put", refuse)
    with pytest.raises(StoreError, match="disk is full"):
        run.sample(load=failing(drawn.append))
    assert len(drawn) < 6


def test_a_changed_checkpoint_is_refused() -> None:
    run = small_run(memory())
    run.plan()
    run.folder.put(CHECKPOINT.key, b"other weights")
    with pytest.raises(CorruptShard, match=r"has sha256 .*was trained"):
        run.sample()


def test_files_of_an_interrupted_png_shard_are_kept() -> None:
    """On another kind of machine the same row may differ in its last bits: what is there counts, and is hashed."""
    run = small_run(memory(), format="png")
    _, record = run.plan()
    folder = run.dataset.child(keys.version(record.version))
    key = keys.image("cat", uid(7, 0, 0))
    folder.put(key, b"another machine's bytes")
    [entry] = [f for r in run.sample() for f in r.files if f["key"] == key]
    assert entry["bytes"] == 23 and folder.get(key) == b"another machine's bytes"


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_shards_are_held_than_workers_and_one(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the plan and however slow the store."""
    monkeypatch.setattr(fanout, "local_cpus", lambda: 2)
    run, held, most = small_run(memory(), rows_per_shard=1, workers=workers), [0], [0]
    counting, before = threading.Lock(), Store.put_if_absent

    def load(data: bytes) -> Generate:
        def generate(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
            with counting:
                held[0] += 1
                most[0] = max(most[0], held[0])
            return paint(labels, seeds)

        return generate

    def put(self: Store, key: str, data: bytes) -> bool:
        if not key.startswith(keys.RECEIPTS):
            return before(self, key, data)
        time.sleep(0.01)
        with counting:
            held[0] -= 1
        return before(self, key, data)

    monkeypatch.setattr(Store, "put_if_absent", put)
    assert len(run.sample(load=load)) == 26 and held == [0]
    assert most[0] == workers + 1


# the filter


def test_rejected_rows_are_drawn_again_and_counted(tmp_path: Path) -> None:
    for workers in (1, 3):
        run = small_run(str(tmp_path / str(workers)), workers=workers, filter={"min_confidence": 0.5})
        version = run.finish(load_filter=load_every_third)
        rows = pq.read_table(f"{version.url}/data").to_pylist()
        assert version.rows_per_class["cat"] == 17 and len({row["seed"] for row in rows}) == 26
        for row in rows:
            image = paint(np.array([row["label"]]), np.array([row["seed"]]))[0]
            assert row["confidence"] == pytest.approx(image.sum(dtype=np.int64) / 1e5)
            assert row["label"] != 0 or image.sum(dtype=np.int64) % 3 == 0
        rejects = run.dataset.child(keys.version(version.name)).get_json(keys.MANIFEST)["rejects"]
        assert set(rejects) == {"confidence"} and 10 < rejects["confidence"] < 90     # about two of three, 17 times
        verify(version.url, deep=True)
    one, three = (sorted((tmp_path / w).rglob("*.parquet")) for w in ("1", "3"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in three]


def test_a_class_that_the_filter_never_keeps_is_named() -> None:
    class Never:
        def judge(self, images: np.ndarray, labels: np.ndarray) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
            return {}, ["confidence" if label == 3 else "" for label in labels]

    run = small_run(memory(), filter={"min_confidence": 0.5})
    with pytest.raises(SamplingFailed) as failed:
        run.sample(load_filter=lambda folder: Never())
    told = re.search(r"class 'dog': the filter kept 0 of (\d+) draws \(0\.0 %\), (\d) rows failed 50 times "
                     r"\(rejected by: confidence (\d+)\)", str(failed.value))
    assert told
    draws, rows, rejected = map(int, told.groups())
    assert rows in {part.count for spec in run.plan()[0] for part in spec.parts if part.label == 3}
    assert draws == rejected == 50 * rows            # of whichever shard was drawn first


def test_a_filter_without_its_loader_is_no_silent_pass() -> None:
    with pytest.raises(ConfigError, match=r"sample\.filter"):
        small_run(memory(), filter={"min_confidence": 0.5}).sample()


# Ray


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Ray with two CPUs' worth of workers."""
    ray = pytest.importorskip("ray")
    settings = parse_config({"name": "x", "source": {"format": "digits"}})
    with connected(settings):
        yield ray


def on_ray(url: str, **section: Any) -> SmallRun:
    """A small run whose sampling goes to Ray."""
    run = small_run(url, **{"workers": 2, "rows_per_shard": 3, **section})
    content = {**run.config.model_dump(), "cluster": {"address": "local"}}
    return SmallRun(parse_config(content), run.run_id, run.dataset)


def files(run: SmallRun) -> dict[str, bytes]:
    """The data files of the run's version."""
    folder = run.dataset.child(keys.version(run.plan()[1].version))
    return {info.key: folder.get(info.key) for info in folder.list("data")}


@pytest.mark.parametrize("format_name", ["parquet", "png", pytest.param("webdataset", marks=pytest.mark.slow)])
def test_ray_makes_the_same_files(tmp_path: Path, ray_cluster: Any, format_name: str) -> None:
    run = on_ray(str(tmp_path / "a"), format=format_name)
    run.finish()
    inline = small_run(str(tmp_path / "b"), rows_per_shard=3, format=format_name)
    inline.finish()
    assert files(run) == files(inline) and verify(run.dataset.url, deep=True)["rows"] == 26


def test_killed_workers_are_replaced(tmp_path: Path, ray_cluster: Any) -> None:
    run = on_ray(str(tmp_path / "a"))
    (tmp_path / "deaths").mkdir()
    run.finish(load=functools.partial(load_deadly, folder=str(tmp_path / "deaths"), label=3, deaths=1))
    assert list((tmp_path / "deaths").iterdir())
    told = verify(run.dataset.url, deep=True, orphans=True)
    assert told["rows_per_class"] == {"cat": 17, "größe/2": 0, "empty": 0, "dog": 9} and not told["orphans"]


@pytest.mark.slow
def test_a_shard_that_always_kills_its_worker_is_given_up(tmp_path: Path, ray_cluster: Any) -> None:
    run = on_ray(str(tmp_path / "a"))
    (tmp_path / "deaths").mkdir()
    with pytest.raises(SamplingFailed, match=r"shards failed 3 times each .*its worker died") as told:
        run.sample(load=functools.partial(load_deadly, folder=str(tmp_path / "deaths"), label=3, deaths=99))
    hopeless = {p.name.split("-")[0] for p in (tmp_path / "deaths").iterdir()}
    assert f"{len(hopeless)} of 9 shards" in str(told.value)       # nobody else was given up with them
    assert len(run.folder.list(keys.RECEIPTS)) == 9 - len(hopeless)
    assert verify(run.finish().url, deep=True)["rows"] == 26


def test_an_interrupt_ends_the_workers_and_keeps_what_is_finished(tmp_path: Path, ray_cluster: Any) -> None:
    run = on_ray(str(tmp_path / "a"), rows_per_shard=1)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while len(run.folder.list(keys.RECEIPTS)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run.sample(load=load_slow)
    time.sleep(0.3)
    kept = len(run.folder.list(keys.RECEIPTS))
    assert 3 <= kept < 26
    time.sleep(1.0)
    assert len(run.folder.list(keys.RECEIPTS)) == kept             # nobody writes on
    assert verify(run.finish().url, deep=True)["rows"] == 26
