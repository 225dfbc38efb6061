"""Clearing away never touches what a reader can reach."""

from pathlib import Path

import pytest

from pipeline import keys
from pipeline.errors import ConfigError
from pipeline.publication import show, verify
from pipeline.retention import collect_garbage, retire
from tests.pipeline.small import SmallRun, small_run


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
