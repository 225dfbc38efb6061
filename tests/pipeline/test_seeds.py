"""Seeds: from names alone, independent, and the same tomorrow."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline import seeds

SEEDS = st.integers(0, 2**31 - 1)
LABELS = st.integers(0, 5000)


@given(SEEDS, LABELS, st.integers(0, 2**31), st.integers(1, 50), st.integers(0, 49), st.integers(0, 3))
def test_a_row_does_not_depend_on_who_asks(seed: int, label: int, first: int, n: int, k: int, attempt: int) -> None:
    k = min(k, n - 1)
    rows = seeds.row_seeds(seed, label, first, n, attempt)
    assert rows[k] == seeds.row_seeds(seed, label, first + k, 1, attempt)[0]
    assert rows.dtype == np.int64 and (rows >= 0).all() and len(np.unique(rows)) == n


@given(SEEDS, LABELS, st.integers(0, 10**6), st.integers(1, 20))
def test_uids_follow_from_seed_class_and_number(seed: int, label: int, first: int, n: int) -> None:
    assert seeds.uids(seed, label, first, n) == [seeds.uid(seed, label, i) for i in range(first, first + n)]


def test_nothing_shares_a_seed_or_a_uid() -> None:
    rows = np.concatenate([seeds.row_seeds(s, c, 0, 500, a) for s in range(3) for c in range(12) for a in range(3)])
    assert len(np.unique(rows)) == len(rows)
    names = [u for s in range(3) for c in range(12) for u in seeds.uids(s, c, 0, 500)]
    assert len(set(names)) == len(names)


def test_seeds_look_like_noise() -> None:
    bits = np.unpackbits(seeds.row_seeds(0, 0, 0, 20_000).view(np.uint8).reshape(-1, 8), axis=1)
    share = bits.mean(axis=0)
    assert share[56] == 0 and np.abs(np.delete(share, 56) - 0.5).max() < 0.02     # the sign bit, then fair coins
    assert np.abs(np.corrcoef(np.delete(bits, 56, axis=1)[1:].T, rowvar=True) - np.eye(63)).max() < 0.05


@given(SEEDS, st.lists(st.text(max_size=5) | st.integers(0, 99), max_size=4))
def test_names_are_told_apart(seed: int, names: list[str | int]) -> None:
    found = seeds.derive(seed, *names)
    assert 0 <= found < 2**63 and found == seeds.derive(seed, *names)
    assert found != seeds.derive(seed, *names, "") and found != seeds.derive(seed + 1, *names)


def test_a_number_is_not_its_text() -> None:
    assert seeds.derive(0, 1) != seeds.derive(0, "1") and seeds.derive(0, "ab") != seeds.derive(0, "a", "b")


def test_the_order_is_a_permutation_of_its_own_for_each_shard() -> None:
    a, b = seeds.order(7, 0, 100), seeds.order(7, 1, 100)
    assert sorted(a) == list(range(100)) and (a != b).any() and (a == seeds.order(7, 0, 100)).all()


def test_seeds_stay_what_they_were() -> None:
    """A change here changes every dataset that is minted again."""
    assert seeds.derive(0, "x", 1) == 6135006982110591837
    assert seeds.uid(0, 1, 3) == "b4d19a2007b2ac14f9755123"
    assert seeds.row_seeds(7, 2, 5, 2).tolist() == [1511106333109492120, 6455331592975548736]
