"""Every item of a source, read, decoded and brought into the prepared form, or quarantined with its reason.

Arrays are handled whole. Encoded images go through a bounded number of threads (the decoders leave Python's lock) with
a bounded number in flight; with quotas only what is drawn stays in memory.
"""

import functools
import hashlib
import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline import seeds
from pipeline.progress import Progress
from pipeline.sources.decoding import decode
from pipeline.sources.geometry import fit
from pipeline.sources.source import (
    ArraySource,
    BadItem,
    Mended,
    RawItem,
    Reason,
    Source,
    Split,
    Unreadable,
    label_fault,
)
from pipeline.splits import UNLIMITED, draw

DIGEST_BYTES = 16
_REMOTE_THREADS = 16                                 # most of a reader's time is waiting there
_CHUNK_ITEMS = 32                                    # handed to a thread at once: a call costs as much as a small image
_CHUNK_FILES = 4                                     # when each has to be fetched first
_LIGHT_BYTES = 16 << 10                              # smaller images cost less than handing Python's lock around does
_PROGRESS_S = 0.5


@dataclass(frozen=True)
class Form:
    """What an image is brought into, and the seed that orders contents."""

    resolution: int
    channels: int                                    # 1 grey, 3 RGB
    seed: int                                        # the run's


@dataclass
class Readings:
    """All items that could be read; row i of everything belongs together. The order has no meaning."""

    images: Sequence[np.ndarray] | np.ndarray        # each uint8 (C, R, R)
    labels: np.ndarray                               # int64 (N,)
    splits: np.ndarray                               # (N,) of Split values
    digests: np.ndarray                              # S16 (N,) keyed hash of the prepared pixels
    keys: np.ndarray                                 # S16 (N,) keyed hash of the content as the source holds it
    names: list[str]
    mended: list[tuple[Mended, ...]]
    bad: list[BadItem] = field(default_factory=list)


def read_items(source: Source, form: Form, asked: np.ndarray, lazy: bool, total: int, progress: Progress,
               threads: int | None = None) -> Readings:
    """Reads the whole source.

    Args:
        asked: int64 (classes,), how many train items of each class; items of a class asked for 0 times are passed over.
        lazy: whether the draw may be made while reading: of each class the asked number of train items whose hashes
            come first, and what is unreadable among those that come before the last of them.
        total: items, for the progress.
        threads: that decode; by default one a CPU, more for a remote source.

    Raises:
        SourceError: the source went away or is damaged as a whole.
    """
    if isinstance(source, ArraySource):
        return _read_arrays(source, form, asked, lazy)
    return _Reader(source, form, asked, lazy, threads).run(total, progress)


def digests_of(rows: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Keyed hash of every row.

    Args:
        rows: uint8 (N, …).

    Returns:
        S16 (N,).
    """
    if not rows.size:
        return _packed([])
    keyed = _keyed(seed, purpose)
    flat = np.ascontiguousarray(rows).data.cast("B")
    width = len(flat) // len(rows)
    found = []
    for at in range(0, len(flat), width):
        hashed = keyed.copy()
        hashed.update(flat[at:at + width])
        found.append(hashed.digest()[:DIGEST_BYTES])
    return _packed(found)


def _digest(keyed: "hashlib._Hash", content: bytes | np.ndarray) -> bytes:
    hashed = keyed.copy()
    hashed.update(content if isinstance(content, bytes) else np.ascontiguousarray(content).data)
    return hashed.digest()[:DIGEST_BYTES]


def _keyed(seed: int, purpose: str) -> "hashlib._Hash":
    return hashlib.sha256(seeds.derive(seed, purpose).to_bytes(8, "big"))


def _read_arrays(source: ArraySource, form: Form, asked: np.ndarray, lazy: bool) -> Readings:
    classes = len(asked)
    pieces: list[Readings] = []
    for part in source.parts():
        good = (part.labels >= 0) & (part.labels < classes)
        bad = [BadItem(f"{part.name}[{i}]", *label_fault(int(part.labels[i]), classes), split=part.split)  # type: ignore[misc]
               for i in np.flatnonzero(~good)]
        rows = np.flatnonzero(good)
        rows = rows[asked[part.labels[rows]] > 0]
        keys = digests_of(part.images[rows] if len(rows) < len(good) else part.images, form.seed, "draw")
        if lazy and part.split is Split.TRAIN:
            drawn = draw(part.labels[rows], keys, asked)
            rows, keys = rows[drawn], keys[drawn]
        raw = part.images if len(rows) == len(part.labels) else part.images[rows]
        images = fit(raw if raw.ndim == 4 else raw[..., None], form.resolution, form.channels)
        mended = (Mended.GREY,) if raw.ndim == 4 and form.channels == 1 else ()
        pieces.append(Readings(
            images, part.labels[rows], np.full(len(rows), part.split.value),
            digests_of(images, form.seed, "pixels"), keys, [f"{part.name}[{i}]" for i in rows.tolist()],
            [mended] * len(rows), bad,
        ))
    return _joined(pieces)


def _joined(pieces: list[Readings]) -> Readings:
    def rows(name: str) -> np.ndarray:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    return Readings(
        rows("images"), rows("labels"), rows("splits"), rows("digests"), rows("keys"),
        [n for piece in pieces for n in piece.names], [m for piece in pieces for m in piece.mended],
        [b for piece in pieces for b in piece.bad],
    )


@dataclass(slots=True)
class _Read:
    """One item after reading; its payload is let go."""

    name: str
    label: int | None
    split: Split
    key: bytes | None = None                         # None: not even its bytes could be had
    image: np.ndarray | None = None                  # None: bad, or passed over by the draw
    digest: bytes = b""
    mended: tuple[Mended, ...] = ()
    bad: BadItem | None = None


class _Draw:
    """The `asked` items of a class with the smallest keys, of those offered so far."""

    def __init__(self, asked: int):
        self._asked = asked
        self._heap: list[tuple[int, int, _Read]] = []           # largest key on top
        self._count = itertools.count()

    def wants(self, key: bytes) -> bool:
        """Whether an item of this key would be among them. May turn from yes to no, never back."""
        return len(self._heap) < self._asked or int.from_bytes(key, "big") < -self._heap[0][0]

    def offer(self, read: _Read, key: bytes) -> None:
        """Takes the item if it is among them."""
        entry = (-int.from_bytes(key, "big"), -next(self._count), read)
        if len(self._heap) < self._asked:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def drawn(self) -> Iterator[_Read]:
        """What was taken."""
        return (read for _, _, read in self._heap)


class _Reader:
    """Reads encoded images in threads."""

    def __init__(self, source: Source, form: Form, asked: np.ndarray, lazy: bool, threads: int | None):
        self._source, self._form, self._asked = source, form, asked
        self._draws = {c: _Draw(n) for c, n in enumerate(asked.tolist()) if lazy and n < UNLIMITED}
        self._threads = threads
        self._draw_hash, self._pixels_hash = _keyed(form.seed, "draw"), _keyed(form.seed, "pixels")
        self._kept: list[_Read] = []
        self._bad: list[_Read] = []

    def run(self, total: int, progress: Progress) -> Readings:
        """Reads everything and gathers what stays."""
        begun = told = time.monotonic()
        done = 0
        for reads in self._in_threads(self._chunks()):
            for read in reads:
                self._take(read)
            done += len(reads)
            if (now := time.monotonic()) - told > _PROGRESS_S:
                told = now
                progress.update(done, total, images_per_s=round(done / (now - begun)))
        kept = self._kept + [read for drawing in self._draws.values() for read in drawing.drawn()]
        return Readings(
            [r.image for r in kept if r.image is not None], np.array([r.label for r in kept], np.int64),
            np.array([r.split.value for r in kept], dtype="U5"), _packed([r.digest for r in kept]),
            _packed([r.key or b"" for r in kept]), [r.name for r in kept], [r.mended for r in kept],
            [r.bad for r in self._bad if r.bad is not None and self._counts(r)],
        )

    def _chunks(self) -> Iterator[list[RawItem]]:
        items = (item for item in self._source.items() if self._is_wanted(item))
        first = next(items, None)
        if first is None:
            return
        length = _CHUNK_FILES if callable(first.payload) else _CHUNK_ITEMS
        everything = itertools.chain([first], items)
        while chunk := list(itertools.islice(everything, length)):
            yield chunk

    def _is_wanted(self, item: RawItem) -> bool:
        return item.label is None or not 0 <= item.label < len(self._asked) or self._asked[item.label] > 0

    def _in_threads(self, chunks: Iterable[list[RawItem]]) -> Iterator[list[_Read]]:
        """The chunks' outcomes in their order; at most three chunks a thread are in memory."""
        count = self._threads or ((os.cpu_count() or 1) if self._source.is_local else _REMOTE_THREADS)
        pool = ThreadPoolExecutor(count, thread_name_prefix="read")
        waiting: deque[Callable[[], list[_Read]]] = deque()
        try:
            for chunk in chunks:
                if self._threads is None and all(self._is_light(item) for item in chunk):
                    waiting.append(functools.partial(self._read_all, chunk))
                else:
                    waiting.append(pool.submit(self._read_all, chunk).result)
                if len(waiting) >= 3 * count:
                    yield waiting.popleft()()
            while waiting:
                yield waiting.popleft()()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _is_light(self, item: RawItem) -> bool:
        if callable(item.payload):
            return self._source.is_local and item.size <= _LIGHT_BYTES
        return len(item.payload) <= _LIGHT_BYTES

    def _read_all(self, items: list[RawItem]) -> list[_Read]:
        return [self._read(item) for item in items]

    def _read(self, item: RawItem) -> _Read:
        """In a thread: bytes → hash → pixels → prepared pixels. Skips what the draw would not take any more."""
        read = _Read(item.name, item.label, item.split)
        try:
            fault = label_fault(item.label, len(self._asked))
            if fault:
                raise Unreadable(*fault)
            payload = item.load()
            read.key = _digest(self._draw_hash, payload)
            if not self._is_open(read):
                return read
            if isinstance(payload, np.ndarray):
                pixels = payload
            else:
                pixels, read.mended = decode(payload, self._form.resolution)
        except Unreadable as e:
            read.bad = BadItem(item.name, e.reason, e.detail, item.label, item.split)
            return read
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.shape[2] > self._form.channels:
            read.mended = (*read.mended, Mended.GREY)
        read.image = fit(pixels[None], self._form.resolution, self._form.channels)[0]
        read.digest = _digest(self._pixels_hash, read.image)
        return read

    def _drawing(self, read: _Read) -> _Draw | None:
        return self._draws.get(read.label) if read.split is Split.TRAIN and read.label is not None else None

    def _is_open(self, read: _Read) -> bool:
        """Whether the draw would take an item of this content."""
        drawing = self._drawing(read)
        return drawing is None or read.key is None or drawing.wants(read.key)

    def _take(self, read: _Read) -> None:
        drawing = self._drawing(read)
        if read.bad is not None:
            self._bad.append(read)
        elif read.image is not None and drawing is not None and read.key is not None:
            drawing.offer(read, read.key)
        elif read.image is not None:
            self._kept.append(read)

    def _counts(self, read: _Read) -> bool:
        """Whether a bad item would have been drawn had it been good; one without class or content counts."""
        return self._is_open(read) or (read.bad is not None and read.bad.reason is Reason.EMPTY)


def _packed(digests: list[bytes]) -> np.ndarray:
    return np.array(digests, dtype=f"S{DIGEST_BYTES}")
