"""Receipts and sizes in little memory are receipts and sizes all the same."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import keys, ledger, manifest
from pipeline.ledger import Ledger, Sizes
from pipeline.records import Receipt
from pipeline.store import ObjectInfo


def receipt(index: int, **changes: Any) -> Receipt:
    """Of a shard with two classes."""
    given: dict[str, Any] = {"key": f"data/train-{index:05d}-{hash(index):x}.parquet", "rows": 3, "bytes": 4000 + index,
                             "rows_per_class": {"größe/2": 1, "dog": 2}, "sha256": f"{index:064x}", "seed": 7}
    return Receipt(index, **{**given, **changes})


@given(st.integers(1, 40), st.data())
def test_a_ledger_is_the_list_of_its_receipts(shards: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger, "BLOCK", data.draw(st.integers(1, 9)))
        order = data.draw(st.lists(st.integers(0, shards - 1), max_size=60))
        book, expected = Ledger(shards), dict[int, Receipt]()
        for n, index in enumerate(order):
            added = receipt(index, seconds=float(n), rejects={"confidence": n},
                            files=({"key": "a", "bytes": 1, "sha256": "b", "label": 0},) if index % 2 else ())
            book.add(added)
            expected.setdefault(index, added)            # a second one of the same shard is left out
        whole = [expected[i] for i in sorted(expected)]
        assert list(book) == whole and len(book) == len(whole) and list(book.slots()) == [expected.get(i) for i in range(shards)]
        assert [book.has(i) for i in range(shards)] == [i in expected for i in range(shards)]
        if whole:
            at = data.draw(st.integers(-len(whole), len(whole) - 1))
            assert book[at] == whole[at] and book[at:] == whole[at:]
        for outside in (-1, shards):
            with pytest.raises(IndexError):
                book.add(receipt(outside))


def test_a_ledger_takes_little() -> None:
    tracemalloc.start()
    book = Ledger(20_000)
    for i in range(20_000):
        book.add(receipt(i, sha256=f"{hash((i, 'x')) & 2**64 - 1:064x}"))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / 20_000 < 150 and sum(r.bytes for r in book) == sum(4000 + i for i in range(20_000))


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 2**40), max_size=50), st.lists(st.text(max_size=5), max_size=20))
def test_sizes_are_those_of_the_listing(objects: dict[str, int], asked: list[str]) -> None:
    sizes = Sizes(ObjectInfo(key, size) for key, size in objects.items())
    assert len(sizes) == len(objects)
    assert all(sizes.get(key) == objects.get(key) for key in [*objects, *asked])


@given(st.integers(0, 200), st.integers(300, 5000))
def test_a_long_list_is_packed_into_parts_of_bounded_size(count: int, most: int) -> None:
    entries = list(manifest.entries([receipt(i) for i in range(count)], ["größe/2", "dog"]))
    put: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifest, "MAX_BYTES", most)
        packed = manifest.pack(entries, put.__setitem__)
        again: dict[str, bytes] = {}
        assert manifest.pack(iter(entries), again.__setitem__) == packed and again == put
    if put:
        assert packed["shards"] == [] and list(put) == [keys.manifest_part(i) for i in range(len(put))] and len(put) > 1
        assert all(len(data) <= max(most, 500) for data in put.values())
        assert [e for data in put.values() for e in json.loads(data)["shards"]] == entries
        assert [part["bytes"] for part in packed["parts"]] == [len(data) for data in put.values()]
    else:
        assert packed == {"shards": entries} and len(json.dumps(entries)) <= max(most, 500)


@given(st.integers(0, 10**7), st.text(max_size=4))
def test_the_key_of_a_receipt_leads_back_to_its_shard(index: int, other: str) -> None:
    assert keys.receipt_index(keys.receipt(index)) == index
    assert keys.receipt_index(f"receipts/{other}.json") is None or f"receipts/{int(other):05d}.json" == f"receipts/{other}.json"
