"""Which item goes where: properties that must hold for any labels and contents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import LongTail, Subset
from pipeline.errors import ConfigError
from pipeline.splits import (
    UNLIMITED,
    conflicting,
    draw,
    groups_per_class,
    held_out_rows,
    hold_out,
    quotas,
    repeated,
)


@st.composite
def populations(draw_: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(labels, digests): up to four classes of at least three different contents, each content once or a few times."""
    rng = np.random.default_rng(draw_(st.integers(0, 2**32)))
    labels, digests = [], []
    for label, groups in enumerate(draw_(st.lists(st.integers(3, 15), min_size=1, max_size=4))):
        for copies in draw_(st.lists(st.sampled_from([1, 1, 1, 1, 2, 5]), min_size=groups, max_size=groups)):
            labels += [label] * copies
            digests += [rng.bytes(16)] * copies
    order = rng.permutation(len(labels))
    return np.array(labels, np.int64)[order], np.array(digests, "S16")[order]


@given(populations(), st.floats(0.01, 0.6), st.integers(1, 2))
def test_groups_stay_together_and_every_class_is_on_both_sides(
    population: tuple[np.ndarray, np.ndarray], share: float, leave: int
) -> None:
    labels, digests = population
    out = hold_out(labels, digests, share, leave)
    assert not set(digests[out]) & set(digests[~out])
    for label in np.unique(labels):
        mine = labels == label
        assert out[mine].any() and len(set(digests[mine & ~out])) >= leave


@given(populations(), st.floats(0.01, 0.6), st.integers(1, 2))
def test_counts_are_exact_where_nothing_occurs_twice(
    population: tuple[np.ndarray, np.ndarray], share: float, leave: int
) -> None:
    labels, digests = population
    digests, first = np.unique(digests, return_index=True)
    labels = labels[first]
    out = hold_out(labels, digests, share, leave)
    for label in np.unique(labels):
        rows = int((labels == label).sum())
        assert int(out[labels == label].sum()) == held_out_rows(rows, share, leave)


@given(populations(), st.floats(0.01, 0.6))
def test_groups_never_overfill_a_share_unless_all_are_larger(
    population: tuple[np.ndarray, np.ndarray], share: float
) -> None:
    labels, digests = population
    out = hold_out(labels, digests, share, 1)
    for label in np.unique(labels):
        mine = labels == label
        target = held_out_rows(int(mine.sum()), share, 1)
        sizes = np.unique(digests[mine], return_counts=True)[1]
        assert out[mine].sum() <= target or (sizes.min() > target and out[mine].sum() == sizes.min())


@given(populations(), st.floats(0.01, 0.6), st.randoms())
def test_the_order_of_items_does_not_matter(
    population: tuple[np.ndarray, np.ndarray], share: float, random: object
) -> None:
    labels, digests = population
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(labels))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(
        hold_out(labels, digests, share, 2)[order], hold_out(labels[order], digests[order], share, 2)
    )
    np.testing.assert_array_equal(conflicting(labels, digests)[order], conflicting(labels[order], digests[order]))
    asked = np.array([3, 0, UNLIMITED, 1])
    drawn, again = draw(labels, digests, asked), draw(labels[order], digests[order], asked)
    assert sorted(zip(labels[drawn], digests[drawn])) == sorted(zip(labels[order][again], digests[order][again]))


@given(st.integers(0, 10**6), st.floats(0, 0.99), st.integers(0, 3))
def test_held_out_rows_leave_enough(rows: int, share: float, leave: int) -> None:
    held = held_out_rows(rows, share, leave)
    assert held >= 0 and (held == 0 or rows - held >= leave)
    if rows > leave:
        assert held >= 1 and (held == 1 or held == rows - leave or abs(held - rows * share) <= 0.5)


def test_adding_an_image_moves_few_others() -> None:
    rng = np.random.default_rng(0)
    digests = np.array([rng.bytes(16) for _ in range(400)], "S16")
    labels = np.zeros(400, np.int64)
    before = set(digests[:-1][hold_out(labels[:-1], digests[:-1], 0.15, 1)])
    after = set(digests[hold_out(labels, digests, 0.15, 1)])
    assert len(before ^ after) <= 2


@given(populations(), st.lists(st.integers(0, 20), min_size=4, max_size=4))
def test_a_draw_takes_what_is_asked_or_all(population: tuple[np.ndarray, np.ndarray], asked: list[int]) -> None:
    labels, digests = population
    drawn = draw(labels, digests, np.array(asked))
    for label in np.unique(labels):
        mine = labels == label
        assert drawn[mine].sum() == min(asked[label], mine.sum())
        if drawn[mine].any() and not drawn[mine].all():
            assert max(digests[mine & drawn].tolist()) <= min(digests[mine & ~drawn].tolist())


def test_conflicts_repeats_and_groups() -> None:
    labels = np.array([0, 1, 0, 0, 1])
    digests = np.array([b"a", b"a", b"b", b"b", b"c"])
    assert conflicting(labels, digests).tolist() == [True, True, False, False, False]
    assert repeated(digests) == 4 and repeated(digests[:0]) == 0
    assert groups_per_class(labels[2:], digests[2:], 3).tolist() == [1, 1, 0]
    assert conflicting(labels[:0], digests[:0]).tolist() == []


def test_long_tail_is_the_formula() -> None:
    asked = quotas(Subset(longtail=LongTail(head=500, ratio=100)), [str(i) for i in range(10)])
    assert asked.tolist() == [500, 300, 180, 108, 65, 39, 23, 14, 8, 5]  # as CIFAR-10-LT has it, rounded
    assert quotas(Subset(longtail=LongTail(head=7, ratio=100)), ["a"]).tolist() == [7]
    assert quotas(Subset(longtail=LongTail(head=10, ratio=1)), ["a", "b"]).tolist() == [10, 10]
    assert quotas(Subset(longtail=LongTail(head=10, ratio=100)), ["a", "b"]).tolist() == [10, 1]


def test_left_out_classes_are_asked_for_nothing() -> None:
    assert quotas(Subset(classes=["c", "a"]), ["a", "b", "c"]).tolist() == [UNLIMITED, 0, UNLIMITED]
    assert quotas(Subset(classes=["c", "a"], per_class=5), ["a", "b", "c"]).tolist() == [5, 0, 5]
    assert quotas(Subset(classes=["a", "c"], longtail=LongTail(head=8, ratio=4)), ["a", "b", "c"]).tolist() == [8, 0, 2]
    assert quotas(None, ["a"]).tolist() == [UNLIMITED]
    with pytest.raises(ConfigError, match=r"source.subset.classes: no class 'x' .* 'a', 'b'"):
        quotas(Subset(classes=["x"]), ["a", "b"])
