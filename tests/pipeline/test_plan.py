"""The plan: exact, pure, the same for any number of workers, and of one mind about what it was made of."""

import dataclasses
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keys, walk
from pipeline.config import parse_config
from pipeline.errors import ConfigError, PlanMismatch, StoreError
from pipeline.plan import MAX_ROWS_PER_CLASS, Plan, make_plan, makes_every_class, open_plan, rows_to_make
from pipeline.progress import NullProgress
from pipeline.store import Store
from tests.pipeline.small import CHECKPOINT, CLASSES, COUNTS, SNAPSHOT, small_run

SIZES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 400), min_size=1, max_size=12).filter(
    lambda sizes: sum(sizes.values()) > 0)


@given(SIZES, st.integers(1, 60))
@settings(max_examples=200)
def test_shards_hold_every_row_once(sizes: dict[str, int], rows_per_shard: int) -> None:
    plan = Plan(tuple(sizes), sizes, rows_per_shard)
    following = Counter[int]()
    for i, spec in enumerate(plan):
        assert (spec.index, spec.of) == (i, len(plan))
        assert spec.rows == min(rows_per_shard, plan.rows - i * rows_per_shard) > 0
        assert [p.label for p in spec.parts] == sorted({p.label for p in spec.parts})
        for part in spec.parts:
            assert part.first == following[part.label] and part.count > 0
            following[part.label] += part.count
    assert {name: following[label] for label, name in enumerate(sizes)} == sizes


@given(SIZES, st.integers(1, 60), st.data())
def test_a_shard_is_the_same_asked_alone_or_in_turn(sizes: dict[str, int], per_shard: int, data: st.DataObject) -> None:
    plan = Plan(tuple(sizes), sizes, per_shard)
    whole = list(plan)
    at = data.draw(st.integers(0, len(plan) - 1))
    assert plan[at] == whole[at] == plan[at - len(plan)]
    assert plan[at:at + 4] == whole[at:at + 4] and plan[::-7] == whole[::-7]
    with pytest.raises(IndexError):
        plan[len(plan)]


@given(SIZES, st.integers(1, 60))
def test_every_shard_is_mixed_alike(sizes: dict[str, int], rows_per_shard: int) -> None:
    plan = Plan(tuple(sizes), sizes, rows_per_shard)
    for spec in plan:
        counts = {p.label: p.count for p in spec.parts}
        for label, size in enumerate(sizes.values()):
            assert abs(counts.get(label, 0) - spec.rows * size / plan.rows) < 2 + len(sizes) / 2


def test_a_huge_plan_costs_nothing_until_asked() -> None:
    plan = Plan(tuple("abcdefghij"), dict.fromkeys("abcdefghij", 10**8), 1000)
    assert len(plan) == 10**6 and plan[999_999].parts[-1].first + plan[999_999].parts[-1].count == 10**8


@given(SIZES)
def test_balance_fills_up_to_the_largest(sizes: dict[str, int]) -> None:
    seen = {name: n for name, n in sizes.items() if n}
    if len(set(seen.values())) == 1:
        with pytest.raises(ConfigError, match="all classes are equally large already; give"):
            rows_to_make(sizes, list(sizes), "balance")
        return
    rows = rows_to_make(sizes, list(sizes), "balance")
    assert {sizes[n] + rows[n] for n in seen} == {max(seen.values())}
    assert all(rows[n] == 0 for n in sizes if n not in seen) and list(rows) == list(sizes)


@given(SIZES, st.integers(1, 3000))
def test_a_total_is_spread_as_evenly_as_can_be(sizes: dict[str, int], total: int) -> None:
    rows = rows_to_make(sizes, list(sizes), {"total": total})
    assert sum(rows.values()) == total and all(n >= 0 for n in rows.values())
    assert all(rows[name] == 0 for name, n in sizes.items() if n == 0)
    filled = [sizes[name] + n for name, n in rows.items() if n]
    untouched = [n for name, n in sizes.items() if n and not rows[name]]
    assert max(filled) - min(filled) <= 1 and all(n >= max(filled) - 1 for n in untouched)


def test_targets() -> None:
    assert rows_to_make(COUNTS, CLASSES, {"per_class": 4}) == {"cat": 4, "größe/2": 4, "empty": 0, "dog": 4}
    assert rows_to_make(COUNTS, CLASSES, {"dog": 5, "empty": 0}) == {"cat": 0, "größe/2": 0, "empty": 0, "dog": 5}


@pytest.mark.parametrize(("target", "message"), [
    ({"cow": 5}, "no class named 'cow'; the classes are cat, größe/2, empty, dog"),
    ({"per_class": 5, "total": 6}, "per_class and total stand alone"),
    ({"empty": 5}, "'empty' has no image in the training split"),
    ({"per_class": 0}, "nothing to make"), ({"cat": 0}, "nothing to make"),
    ({"cat": MAX_ROWS_PER_CLASS + 1}, "2,147,483,648 rows of class 'cat'"), ("level", "'level'; give balance"),
])
def test_impossible_targets_are_refused(target: dict[str, int] | str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"sample.target: .*{message}"):
        rows_to_make(COUNTS, CLASSES, target)


@pytest.mark.parametrize(("target", "every"), [
    ("balance", False), ({"per_class": 3}, True), ({"total": 5}, True), ({"a": 2}, False), ({"a": 2, "b": 1}, True),
])
def test_whether_every_class_gets_images(target: dict[str, int] | str, every: bool) -> None:
    assert makes_every_class({"a": 4, "b": 2}, ("a", "b", "without any"), target) is every
    assert not makes_every_class({"a": 3, "b": 3}, ("a", "b"), "balance")          # which makes nothing at all


def test_no_training_image_at_all() -> None:
    with pytest.raises(ConfigError, match="no image of any class"):
        make_plan({"a": 0}, ["a"], "balance", 10)


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


def test_a_plan_is_written_once_and_found_again() -> None:
    run = small_run(memory())
    plan, record = run.plan()
    assert (plan.rows_per_class, record.shards) == ({"cat": 17, "größe/2": 0, "empty": 0, "dog": 9}, 4)
    assert record.version.startswith("v000001-")
    again, found = run.plan()
    assert (list(again), found) == (list(plan), record)
    later = open_plan(run.config, SNAPSHOT, CHECKPOINT, run.folder, run.dataset, datetime(2030, 1, 1, tzinfo=UTC))[1]
    assert later == record


def test_two_drivers_of_a_run_have_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(memory())
    before = Store.put_if_absent

    def slower(self: Store, key: str, data: bytes) -> bool:
        if key == keys.PLAN:
            monkeypatch.setattr(Store, "put_if_absent", before)
            open_plan(run.config, SNAPSHOT, CHECKPOINT, run.folder, run.dataset, datetime(2030, 1, 1, tzinfo=UTC))
        return before(self, key, data)

    monkeypatch.setattr(Store, "put_if_absent", slower)
    assert run.plan()[1].created == "2030-01-01T00:00:00Z"


def test_a_plan_made_of_something_else_is_refused_by_name() -> None:
    run = small_run(memory())
    run.plan()
    other = dataclasses.replace(CHECKPOINT, sha256="0" * 64)
    with pytest.raises(PlanMismatch, match=r"another checkpoint \(was bb99c4568f70, is 000000000000\); continue with"):
        open_plan(run.config, SNAPSHOT, other, run.folder, run.dataset)
    changed = small_run(run.config.publish.url, target={"per_class": 3})
    with pytest.raises(PlanMismatch, match="another config"):
        changed.plan()
    with pytest.raises(PlanMismatch, match=r"another snapshot .* and another checkpoint"):
        open_plan(run.config, dataclasses.replace(SNAPSHOT, fingerprint="x"), other, run.folder, run.dataset)


def test_workers_and_places_do_not_change_a_plan() -> None:
    run = small_run(memory())
    record = run.plan()[1]
    assert small_run(run.config.publish.url, workers=2).plan()[1] == record


def test_a_damaged_plan_is_told() -> None:
    run = small_run(memory())
    run.folder.put(keys.PLAN, b"[]")
    with pytest.raises(StoreError, match=r"plan\.json is no plan"):
        run.plan()


def test_a_run_with_nothing_to_make_ends_before_it_trains(tmp_path: Path) -> None:
    config = parse_config({
        "name": "even", "source": {"format": "digits", "subset": {"per_class": 12}}, "prepare": {"resolution": 8},
        "publish": {"url": str(tmp_path)},
    })
    run = walk.begin(config, "r1", NullProgress())
    with pytest.raises(ConfigError, match=r"sample\.target: balance: nothing to make"):
        walk.prepare(config, run, NullProgress())
