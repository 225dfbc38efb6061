"""What is finished already: receipts, one a shard, and copies of hundreds in one object, so that a resume need not read each."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import keys
from pipeline.errors import MissingObject, StoreError
from pipeline.ledger import Ledger, Sizes
from pipeline.records import Receipt, ShardSpec
from pipeline.store import Store, compact_json

READERS = 16                                         # receipts read at a time
BUNDLE_RECEIPTS = 500                                # copied into one object …
BUNDLE_BYTES = 8 * 2**20                             # … or fewer, when they list many files


def finished(
    plan: Sequence[ShardSpec], run: Store, version: Store, seed: int, classes: Sequence[str]
) -> Ledger:
    """Receipts of the shards that are whole in the store, by one listing of receipts and one of sizes.

    A receipt that doesn't fit the plan, or whose objects are missing or of another size, is removed together with
    those objects, so that the shard is made anew.
    """
    done, listed, strange = Ledger(len(plan)), bytearray(len(plan)), []
    for info in run.walk(keys.RECEIPTS):
        index = keys.receipt_index(info.key)
        if index is not None and index < len(plan):
            listed[index] = 1
        else:                                            # of no shard in this plan
            strange.append(info.key)
    for key in strange:
        run.delete(key)
    if not any(listed):
        return done
    sizes = Sizes(version.walk(keys.DATA))
    read, bundles_of = _read_all(run, listed)
    for spec, receipt in zip(plan, read.slots()):
        if not listed[spec.index]:
            continue
        if receipt is not None and receipt.fits(spec, seed, classes) and not _damaged(receipt, sizes):
            done.add(receipt)
            continue
        for bundle in bundles_of(spec.index):            # first the copies: they count as long as the receipt is there
            run.delete(bundle)
        run.delete(keys.receipt(spec.index))
        for bad in _damaged(receipt, sizes) if receipt is not None else ():
            version.delete(bad)
    return done


def _read_all(run: Store, listed: bytearray) -> tuple[Ledger, Callable[[int], list[str]]]:
    """The listed receipts, as far as they can be read, and the bundles that each was found in."""
    bundles = [info.key for info in run.list(keys.RECEIPT_BUNDLES)]
    read, origin = Ledger(len(listed)), array("i", [-1]) * len(listed)
    also: dict[int, list[str]] = {}                      # two drivers of a run may each have made a copy
    with ThreadPoolExecutor(READERS) as threads:
        for first in range(0, len(bundles), READERS):
            some = bundles[first:first + READERS]
            for number, copies in enumerate(threads.map(lambda key: _read_bundle(run, key), some), first):
                for receipt in copies:
                    if 0 <= receipt.index < len(listed) and listed[receipt.index]:
                        if read.has(receipt.index):
                            also.setdefault(receipt.index, []).append(bundles[number])
                        else:
                            read.add(receipt)
                            origin[receipt.index] = number
        single = [index for index in range(len(listed)) if listed[index] and not read.has(index)]
        for first in range(0, len(single), BUNDLE_RECEIPTS):
            for found in threads.map(lambda index: _read(run, index), single[first:first + BUNDLE_RECEIPTS]):
                if found is not None:
                    read.add(found)
    return read, lambda index: [*([bundles[origin[index]]] if origin[index] >= 0 else []), *also.get(index, [])]


def _read_bundle(run: Store, key: str) -> list[Receipt]:
    try:
        return [Receipt.from_json(content) for content in run.get_json(key)]
    except (StoreError, TypeError, KeyError, AttributeError):    # a copy only: the receipts themselves are read then
        return []


def _read(run: Store, index: int) -> Receipt | None:
    try:
        found = Receipt.from_json(run.get_json(keys.receipt(index)))
        return found if found.index == index else None
    except MissingObject:                                # another driver of this run removed it
        return None
    except (StoreError, TypeError, KeyError, AttributeError) as e:
        if isinstance(e, StoreError) and "not valid JSON" not in str(e):
            raise
        return None


def _damaged(receipt: Receipt, sizes: Sizes) -> list[str]:
    """Keys of the receipt's objects that are not there in their full size."""
    objects = receipt.files or ({"key": receipt.key, "bytes": receipt.bytes},)
    return [str(o["key"]) for o in objects if sizes.get(o["key"]) != o["bytes"]]


class Bundler:
    """Copies receipts as they come, hundreds into one object, so that a resume need not read each by itself."""

    def __init__(self, run: Store):
        self._run = run
        self._pending: list[bytes] = []
        self._bytes = 0

    def add(self, receipt: Receipt) -> None:
        """Keeps a copy and puts the bundle when it is full."""
        self._pending.append(compact_json(vars(receipt)))
        self._bytes += len(self._pending[-1])
        if len(self._pending) >= BUNDLE_RECEIPTS or self._bytes >= BUNDLE_BYTES:
            data = b"[" + b",".join(self._pending) + b"]"
            self._run.put(keys.receipt_bundle(hashlib.sha256(data).hexdigest()), data)
            self._pending, self._bytes = [], 0
