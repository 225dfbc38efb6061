"""More of a class, and nothing that is there is made a second time: the new version continues the old one."""

import dataclasses
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keys
from pipeline.mint import Generate
from pipeline.plan import Kept, Plan, open_plan
from pipeline.publication import show, verify
from pipeline.records import Checkpoint
from pipeline.retention import retire
from tests.pipeline.crashing import BEFORE_OR_AFTER, assert_whole, killed_at_each_write
from tests.pipeline.small import CHECKPOINT, CLASSES, SNAPSHOT, SmallRun, load_every_third, paint, small_run
from tests.servers import S3Server

FORMATS = ["parquet", "png", "webdataset"]
SOME, MORE = {"cat": 4, "dog": 6}, {"cat": 12, "größe/2": 5, "dog": 6}


def counting(drawn: list[int]) -> Callable[[bytes], Generate]:
    """A painter that writes down how many rows it was asked for."""
    def load(data: bytes) -> Generate:
        def generate(labels: np.ndarray, latents: np.ndarray) -> np.ndarray:
            drawn.append(len(labels))
            return paint(labels, latents)

        return generate

    return load


def contents(run: SmallRun) -> dict[str, bytes]:
    """sha256 → bytes of the latest version's objects as its manifest lists them."""
    name = run.dataset.get_json(keys.LATEST)["version"]
    folder = run.dataset.child(keys.version(name))
    return {entry["sha256"]: folder.get(entry["key"]) for entry in folder.get_json(keys.MANIFEST)["shards"]}


def rows_of(run: SmallRun) -> dict[str, tuple[int, int, bytes]]:
    """uid → label, seed, PNG of the latest version, which is Parquet."""
    import pyarrow.parquet as pq

    name = run.dataset.get_json(keys.LATEST)["version"]
    table = pq.read_table(f"{run.dataset.url}/{keys.version(name)}/data").to_pylist()
    assert len({row["uid"] for row in table}) == len(table)
    return {row["uid"]: (row["label"], row["seed"], row["image"]["bytes"]) for row in table}


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Somewhere to publish: URL and storage options."""
    if request.param != "s3":
        return str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}", {}
    server: S3Server = request.getfixturevalue("s3_server")
    return f"s3://{server.new_bucket()}/sets", server.options


@pytest.mark.parametrize("format_name", FORMATS)
def test_more_of_a_class_remakes_nothing(place: tuple[str, dict[str, Any]], format_name: str) -> None:
    url, options = place
    first = small_run(url, "r1", options, format=format_name, target=SOME)
    old, before = first.finish(), contents(first)
    drawn: list[int] = []
    second = small_run(url, "r2", options, format=format_name, target=MORE)
    new = second.finish(load=counting(drawn))
    assert sum(drawn) == 13 and new.rows_per_class == {"empty": 0, **MORE}
    assert before.items() < contents(second).items()
    assert verify(second.dataset.url, deep=True, orphans=True, storage_options=options)["orphans"] == []
    told = show(second.dataset.url, options)["versions"]
    assert told[0]["continues"] == {"version": old.name, "rows": 10, "shards": 2} and told[1]["continues"] is None
    assert told[0]["changes"]["rows_per_class"] == {"cat": 8, "größe/2": 5}
    retire(second.dataset, 1)                            # the old version goes, the new one stands by itself
    assert verify(second.dataset.url, deep=True, orphans=True, storage_options=options)["rows"] == 23
    assert second.finish(load=counting(drawn)) == new and sum(drawn) == 13


@settings(max_examples=15)
@given(st.lists(st.fixed_dictionaries({"cat": st.integers(0, 9), "dog": st.integers(0, 9)}), min_size=1, max_size=4),
       st.lists(st.integers(1, 8), min_size=4, max_size=4))
def test_appended_rows_are_those_of_a_plan_made_at_once(steps: list[dict[str, int]], sizes: list[int]) -> None:
    """However the rows were asked for, bit by bit or together, each is the same, and each is there once."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        asked = {"cat": 1, "dog": 0}
        for i, more in enumerate(steps):
            asked = {name: asked[name] + more[name] for name in asked}
            run = small_run(f"{folder}/a", f"r{i}", target=dict(asked), rows_per_shard=sizes[i])
            assert sum(run.finish().rows_per_class.values()) == sum(asked.values())
        verify(run.dataset.url, deep=True, orphans=True)
        assert len(show(run.dataset.url)["versions"]) == len(steps)
        at_once = small_run(f"{folder}/b", target=dict(asked), rows_per_shard=1000)
        at_once.finish()
        assert rows_of(run) == rows_of(at_once)


STEPS = st.lists(st.tuples(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.integers(1, 20)), min_size=1, max_size=5)


@given(STEPS, st.data())
def test_a_plan_that_continues_holds_every_row_once(steps: list[tuple[list[int], int]], data: st.DataObject) -> None:
    classes, sizes, plan = ("a", "b", "c"), [1, 0, 0], None
    for more, per_shard in steps:
        before, sizes = plan, [a + b for a, b in zip(sizes, more)]
        plan = Plan(classes, dict(zip(classes, sizes)), per_shard, Kept(before, "v", "r") if before else None)
        following = [0, 0, 0]
        whole = list(plan)
        for i, spec in enumerate(whole):
            assert (spec.index, spec.of) == (i, len(plan)) and spec.rows > 0
            for part in spec.parts:
                assert part.first == following[part.label]
                following[part.label] += part.count
        assert following == sizes
        assert [s.parts for s in whole[:plan.kept_shards]] == [s.parts for s in before or ()]
        at = data.draw(st.integers(0, len(plan) - 1))
        assert plan[at] == whole[at] and plan[at:at + 3] == whole[at:at + 3]


@pytest.mark.parametrize("format_name", ["parquet", "png"])
@pytest.mark.parametrize("lost", ["version", "receipt", "plan", "object", "metadata"])
def test_what_is_gone_of_the_old_version_is_made_anew(format_name: str, lost: str) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    first = small_run(url, "r1", format=format_name, target=SOME)
    old = first.finish()
    before = contents(first)
    second = small_run(url, "r2", format=format_name, target=MORE)
    if lost == "plan":
        first.folder.delete(keys.PLAN)
    planned = second.plan()
    folder = first.dataset.child(keys.version(old.name))
    if lost == "version":
        first.dataset.delete_prefix(keys.version(old.name))
    elif lost == "receipt":
        first.folder.put(keys.receipt(0), b"[]")
        first.folder.delete(keys.receipt(1))
    elif lost == "object":
        folder.delete(folder.get_json(keys.MANIFEST)["shards"][0]["key"])
    elif lost == "metadata" and format_name == "png":
        first.folder.delete(keys.metadata_part(0))
    drawn: list[int] = []
    second.publish(second.sample(load=counting(drawn)), planned=planned)
    assert (13 if lost == "metadata" and format_name == "parquet" else 14) <= sum(drawn) <= 23
    assert verify(second.dataset.url, deep=True)["rows"] == 23
    if lost != "plan":
        assert before.items() < contents(second).items()        # to the very same bytes


@BEFORE_OR_AFTER
@pytest.mark.parametrize("format_name", ["parquet", pytest.param("png", marks=pytest.mark.slow)])
def test_killed_at_every_write_of_an_append(format_name: str, after: bool) -> None:
    def prepared() -> SmallRun:
        url = f"memory://{uuid.uuid4().hex}"
        small_run(url, "r1", format=format_name, target={"cat": 3, "dog": 4}, rows_per_shard=4).finish()
        return small_run(url, "r2", format=format_name, target={"cat": 3, "dog": 7}, rows_per_shard=4)

    for run, reaper in killed_at_each_write(prepared, after):
        assert reaper.looks >= reaper.at - 1
        run.finish()
        assert_whole(run, {"cat": 3, "größe/2": 0, "empty": 0, "dog": 7})
    assert reaper.at > 8


def continued(url: str, run_id: str, checkpoint: Checkpoint = CHECKPOINT, **section: Any) -> bool:
    """Whether a run's plan goes on from the published version."""
    run = small_run(url, run_id, **section)
    return open_plan(run.config, SNAPSHOT, checkpoint, run.folder, run.dataset)[0].kept is not None


def test_only_rows_of_the_same_kind_are_taken_over() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    small_run(url, "r1", target=SOME).finish()
    assert continued(url, "more", target=MORE) and continued(url, "reshard", target=SOME, rows_per_shard=3)
    assert not continued(url, "fewer", target={"cat": 3, "dog": 60})
    assert not continued(url, "format", target=MORE, format="png")
    assert not continued(url, "filter", target=MORE, filter={"min_confidence": 0.5})
    assert not continued(url, "truncation", target=MORE, truncation=0.9)
    assert not continued(url, "generator", dataclasses.replace(CHECKPOINT, sha256="1" * 64), target=MORE)
    other = small_run(url, "seed", target=MORE)
    seeded = other.config.model_copy(update={"seed": 8})
    assert open_plan(seeded, SNAPSHOT, CHECKPOINT, other.folder, other.dataset)[0].kept is None
    other_classes = dataclasses.replace(SNAPSHOT, classes=tuple(reversed(CLASSES)))
    renumbered = small_run(url, "classes", target=MORE)
    assert open_plan(renumbered.config, other_classes, CHECKPOINT, renumbered.folder, renumbered.dataset)[0].kept is None


def test_scores_and_rejects_of_filtered_rows_are_taken_over(tmp_path: Path) -> None:
    section: dict[str, Any] = {"filter": {"min_confidence": 0.5}}
    first = small_run(str(tmp_path / "a"), "r1", target=SOME, **section)
    first.finish(load_filter=load_every_third)
    second = small_run(str(tmp_path / "a"), "r2", target=MORE, **section)
    second.finish(load_filter=load_every_third)
    at_once = small_run(str(tmp_path / "b"), target=MORE, **section)
    at_once.finish(load_filter=load_every_third)
    assert rows_of(second) == rows_of(at_once)
    told = [show(run.dataset.url)["versions"][0] for run in (second, at_once)]
    assert told[0]["rejects"] == told[1]["rejects"] and told[0]["continues"]["rows"] == 10


def test_an_append_overtaken_by_another_run_goes_on_from_that_one() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    small_run(url, "r1", target=SOME).finish()
    slow, quick = small_run(url, "r2", target={**MORE, "dog": 20}), small_run(url, "r3", target=MORE)
    planned = slow.plan()
    receipts = slow.sample()
    overtaking = max(quick.finish().name, small_run(url, "r4", target={**MORE, "dog": 7}).finish().name)
    with pytest.raises(Exception, match="moved on to version"):
        slow.publish(receipts, planned=planned)
    drawn: list[int] = []
    slow.finish(load=counting(drawn))
    told = show(slow.dataset.url)["versions"]
    assert told[0]["continues"]["version"] == overtaking and sum(drawn) == 13
    assert verify(slow.dataset.url, deep=True, orphans=True)["rows"] == 37
