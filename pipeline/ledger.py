"""What is finished, in little memory: receipts of a million shards, sizes of a million objects."""

import itertools
import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from pipeline.records import Receipt
from pipeline.store import ObjectInfo, compact_json

BLOCK = 500                                          # receipts packed together: some 80 bytes each, instead of 1,500


class Ledger(Sequence[Receipt]):
    """The receipts of a plan, at most one a shard, in the order of the plan whatever the order in which they came.

    Args:
        shards: of the plan.
    """

    def __init__(self, shards: int):
        self._shards = shards
        self._has = bytearray(shards)
        self._open: dict[int, dict[int, bytes]] = {}     # block → index → JSON
        self._packed: dict[int, bytes] = {}
        self._count = 0

    def add(self, receipt: Receipt) -> None:
        """Enters a receipt; a second one of the same shard is left out.

        Raises:
            IndexError: its shard is not in the plan.
        """
        index = receipt.index
        if not 0 <= index < self._shards:
            raise IndexError(f"shard {index} of {self._shards}")
        if self._has[index]:
            return
        block = index // BLOCK
        pending = self._open.setdefault(block, {})
        pending[index] = compact_json(vars(receipt))
        self._has[index] = 1
        self._count += 1
        if len(pending) == min(BLOCK, self._shards - block * BLOCK):
            self._packed[block] = zlib.compress(b"\n".join(pending[i] for i in sorted(pending)), 1)
            del self._open[block]

    def has(self, index: int) -> bool:
        """Whether the shard's receipt is here."""
        return bool(self._has[index])

    def slots(self) -> Iterator[Receipt | None]:
        """One for each shard of the plan: its receipt, or None."""
        for block in range(-(-self._shards // BLOCK)):
            first, end = block * BLOCK, min((block + 1) * BLOCK, self._shards)
            if block in self._packed:
                yield from map(_receipt, zlib.decompress(self._packed[block]).split(b"\n"))
            else:
                pending = self._open.get(block, {})
                yield from (_receipt(pending[i]) if i in pending else None for i in range(first, end))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Receipt]:
        return (receipt for receipt in self.slots() if receipt is not None)

    @overload
    def __getitem__(self, at: int) -> Receipt: ...

    @overload
    def __getitem__(self, at: slice) -> list[Receipt]: ...

    def __getitem__(self, at: int | slice) -> Receipt | list[Receipt]:
        if isinstance(at, slice):
            return list(self)[at]
        position = at + len(self) if at < 0 else at
        if not 0 <= position < len(self):
            raise IndexError(f"receipt {at} of {len(self)}")
        return next(itertools.islice(self, position, None))


def _receipt(data: bytes) -> Receipt:
    content = json.loads(data)
    return Receipt(**{**content, "files": tuple(content["files"])})


class Sizes:
    """Which objects a folder holds, and how large they are, in sixteen bytes an object.

    Keys are told apart by 64 bits of hash: among a million, two share one with a chance of one in 10⁷.
    """

    def __init__(self, objects: Iterable[ObjectInfo]):
        hashes, sizes = array("q"), array("q")
        for info in objects:
            hashes.append(hash(info.key))
            sizes.append(info.size)
        found = np.frombuffer(hashes, dtype=np.int64) if hashes else np.zeros(0, np.int64)
        order = np.argsort(found)
        self._hashes = found[order]
        self._sizes = np.frombuffer(sizes, dtype=np.int64)[order] if sizes else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._hashes)

    def get(self, key: str) -> int | None:
        """Bytes of the object; None when there is none."""
        wanted = hash(key)
        at = int(np.searchsorted(self._hashes, wanted))
        return int(self._sizes[at]) if at < len(self._hashes) and self._hashes[at] == wanted else None
