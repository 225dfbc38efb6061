"""Keys: no way out of the store, and no two things under one name."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import keys
from pipeline.errors import ConfigError
from pipeline.store import Store

NAMES = st.text(max_size=30) | st.sampled_from(["..", ".", "", "a/b", "a%2Fb", "%", "~", "CON", " x", "x ", "x."])


@given(NAMES)
def test_a_class_folder_leads_back_to_its_class(name: str) -> None:
    assert keys.class_of_folder(keys.class_folder(name)) == name


@given(NAMES)
def test_a_class_folder_is_a_safe_name(name: str) -> None:
    folder = keys.class_folder(name)
    assert folder and folder.isprintable() and not set(folder) & set('/\\*?[]{}<>|:"#')
    assert folder[0] not in " ." and folder[-1] not in " ." and len(folder.encode()) <= 200
    Store("memory://x").exists(keys.image(name, "u"))    # the store takes it as a key


def test_plain_names_stay_as_they_are() -> None:
    for name in ("3", "golden retriever", "größe", "猫", "n02099601", "a-b_c.d", "top (inside)"):
        assert keys.class_folder(name) == name


def test_long_names_differ_though_cut() -> None:
    folders = {keys.class_folder("é" * 300 + tail) for tail in ("", "a", "b")}
    assert len(folders) == 3 and all(len(f.encode()) <= 200 for f in folders)


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "-x", "x" * 129, "a b", "x.", "ü"])
def test_a_run_id_is_a_plain_name(run_id: str) -> None:
    with pytest.raises(ConfigError, match="run id"):
        keys.run(run_id)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 10**6))
def test_version_names_sort_in_order_of_publication(number: int, more: int, seconds: int) -> None:
    now = datetime(2026, 1, 31, 2, tzinfo=UTC)
    earlier = keys.version_name(number, now + timedelta(seconds=seconds), "f" * 64)
    later = keys.version_name(number + more, now, "0" * 64)
    if len(str(number + more)) <= 6:                     # a million versions of one dataset keep the order
        assert earlier < later
    assert keys.version_number(later) == number + more


def test_names_of_the_contract() -> None:
    digest = "1f3a9c2e" + "0" * 56
    assert keys.parquet_shard(0, 12, digest) == "data/train-00000-of-00012-1f3a9c2e.parquet"
    assert keys.tar_shard(0, digest) == "data/train-00000-1f3a9c2e.tar"
    assert keys.image("3", "u1") == "data/3/u1.png" and keys.receipt(0) == "receipts/00000.json"
    assert keys.version_name(1, datetime(2026, 1, 31, 2), digest) == "v000001-20260131T020000Z-1f3a9c2e"
    assert keys.version_number("v1") == keys.version_number("") == 0
    assert sorted(keys.checkpoint(k) for k in (9.5, 100, 10)) == [keys.checkpoint(k) for k in (9.5, 10, 100)]
