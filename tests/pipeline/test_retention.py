"""Clearing away never touches what a reader can reach."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import keys
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.publication import show, verify
from pipeline.retention import collect_garbage, retire
from pipeline.runs import Run
from pipeline.store.memory import Memory
from pipeline.walk import Planned
from tests.pipeline.crashing import BEFORE_OR_AFTER, Killed
from tests.pipeline.small import CHECKPOINT, PASSED, SCORECARD, SNAPSHOT, SOFTWARE, Notes, SmallRun, small_run


def published(url: str, count: int) -> tuple[list[str], SmallRun]:
    """So many versions, the oldest first, and the last one's run."""
    runs = [small_run(url, f"r{i}", target={"per_class": i + 1}) for i in range(count)]
    return [run.finish().name for run in runs], runs[-1]


def test_the_latest_versions_stay(tmp_path: Path) -> None:
    names, last = published(str(tmp_path), 4)
    assert retire(last.dataset, 2) == names[:2]
    assert [v["version"] for v in show(last.dataset.url)["versions"]] == names[:1:-1]
    for name in names[2:]:
        verify(f"{last.dataset.url}/versions/{name}", deep=True)
    assert sorted(p.name for p in Path(last.dataset.url, "versions").iterdir()) == names[2:]
    assert retire(last.dataset, 2) == []
    assert verify(last.dataset.url, orphans=True)["orphans"] == []
    assert small_run(str(tmp_path), "r9", target={"per_class": 9}).finish().name.startswith("v000005")


def test_an_interrupted_retirement_leaves_garbage_and_a_whole_history(tmp_path: Path) -> None:
    names, last = published(str(tmp_path), 3)
    last.dataset.delete(f"{keys.version(names[0])}/{keys.MANIFEST}")        # as far as it came
    assert [v["version"] for v in show(last.dataset.url)["versions"]] == [names[2], names[1]]
    removed = collect_garbage(last.dataset)
    assert removed and {key.split("/")[1] for key in removed} == {names[0]}
    assert verify(last.dataset.url, deep=True, orphans=True)["orphans"] == []


@BEFORE_OR_AFTER
def test_a_retirement_killed_at_every_delete(after: bool) -> None:
    """Whatever was deleted: the history is whole from the latest back, and the next retirement clears the rest away."""
    at, died = 1, True
    while died:
        names, last = published(f"memory://{uuid.uuid4().hex}", 4)
        with deletes_end_at(at, after) as deaths:
            try:
                retire(last.dataset, 2)
            except Killed:
                deaths.append(at)
        died = bool(deaths)
        history = [v["version"] for v in show(last.dataset.url)["versions"]]
        assert history == names[:-1 - len(history):-1] and len(history) >= 2
        for name in history:
            verify(f"{last.dataset.url}/versions/{name}", deep=True)
        retire(last.dataset, 2)
        assert last.dataset.folders(keys.VERSIONS) == names[2:]
        assert verify(last.dataset.url, deep=True, orphans=True)["orphans"] == []
        at += 1
    assert at > 10


@BEFORE_OR_AFTER
def test_a_garbage_collection_killed_at_every_delete(after: bool) -> None:
    for at in range(1, 6):
        names, last = published(f"memory://{uuid.uuid4().hex}", 2)
        making = small_run(last.config.publish.url, "making", target={"per_class": 7})
        making.sample()
        for i in range(4):
            last.dataset.put(f"{keys.version(names[i % 2])}/data/stray-{i}", b"x")
        with deletes_end_at(at, after), contextlib.suppress(Killed):
            collect_garbage(last.dataset)
        for name in names:
            verify(f"{last.dataset.url}/versions/{name}", deep=True)
        collect_garbage(last.dataset)
        assert verify(last.dataset.url, deep=True, orphans=True)["orphans"] == []
        assert verify(making.finish().url, deep=True)["rows"] == 21


def test_what_a_run_that_came_too_late_left_is_retired_with_the_rest(tmp_path: Path) -> None:
    late = small_run(str(tmp_path), "late", target={"per_class": 3})
    late.sample()
    names, last = published(str(tmp_path), 3)
    (tmp_path / "small" / "versions" / "my notes").mkdir()
    retired = retire(last.dataset, 1)
    assert len(retired) == 3 and set(names[:2]) < set(retired)
    assert last.dataset.folders(keys.VERSIONS) == ["my notes", names[2]]
    assert late.finish().name.startswith("v000004")
    assert verify(late.dataset.url, deep=True, orphans=True)["orphans"] == []


def test_a_publication_retires_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import publication, walk

    monkeypatch.setattr(walk, "_report", lambda *args: b"<html>")
    monkeypatch.setattr(walk, "_cards", lambda *args: {})
    monkeypatch.setattr(publication, "_software", lambda: SOFTWARE)
    told = Notes()
    for i in range(4):
        run = small_run(str(tmp_path), f"r{i}", target={"per_class": i + 1})
        settings = run.config.model_copy(update={"publish": run.config.publish.model_copy(update={"retention": 2})})
        at = Run(f"r{i}", run.dataset, run.folder, "f", "c")
        receipts, (plan, record) = run.sample(), run.plan()
        walk.publish(settings, SNAPSHOT, CHECKPOINT, SCORECARD, PASSED, Planned(plan, record), receipts, at, told)
    assert len(run.dataset.folders(keys.VERSIONS)) == 2 and len(show(run.dataset.url)["versions"]) == 2
    assert sum("publish.retention keeps 2" in note for note in told.notes) == 2


@pytest.mark.parametrize("value", [0, -1, "some", 1.5])
def test_a_retention_that_would_keep_nothing_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"publish\.retention: "):
        parse_config({"name": "x", "source": {"format": "digits"}, "publish": {"url": "out", "retention": value}})


@contextlib.contextmanager
def deletes_end_at(at: int, after: bool) -> Iterator[list[int]]:
    """Objects go one by one, as on an object store; the process dies before or after the `at`-th."""
    count, before = 0, Memory.delete

    def delete(self: Memory, path: str) -> None:
        nonlocal count
        count += 1
        if count == at and not after:
            raise Killed
        before(self, path)
        if count == at:
            raise Killed

    def delete_all(self: Memory, folder: str) -> None:
        for name, *_ in sorted(self.list(folder), key=lambda item: hash((at, item))):
            self.delete(f"{folder}/{name}")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Memory, "delete", delete)
        patched.setattr(Memory, "delete_all", delete_all)
        yield []


def test_the_latest_cannot_be_retired(tmp_path: Path) -> None:
    _, last = published(str(tmp_path), 1)
    with pytest.raises(ConfigError, match="at least the latest version stays"):
        retire(last.dataset, 0)


def test_garbage_collection_spares_whatever_may_be_referred_to(tmp_path: Path) -> None:
    names, last = published(str(tmp_path), 3)
    making = small_run(str(tmp_path), "making", target={"per_class": 7})
    making.sample()
    last.dataset.delete(f"{keys.version(names[1])}/{keys.MANIFEST}")        # lost: the chain to the first is broken
    stray = f"{keys.version(names[2])}/data/train-00000-of-00009-deadbeef.parquet"
    last.dataset.put(stray, b"x")
    removed = collect_garbage(last.dataset)
    assert stray in removed and {key.split("/")[1] for key in removed} == {names[1], names[2]}
    for name in (names[0], names[2]):
        verify(f"{last.dataset.url}/versions/{name}", deep=True)
    assert verify(making.finish().url, deep=True)["rows"] == 21
