"""MNIST's files: big-endian header (magic, sizes), then bytes; gzipped or not.

Y. LeCun, C. Cortes, C. Burges, The MNIST database, "File formats for the MNIST database".
"""

import functools
import gzip
import io
import math
import re
import struct
import zlib

import numpy as np

from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.sources.files import SourceFile, SourceFiles, assign_splits
from pipeline.sources.source import ArrayPart, ArraySource, Census, Split, count_labels

_NAME = re.compile(r"(?P<stem>(?:.*/)?[^/]*?)(?P<kind>images|labels)(?P<dash>[-.])idx(?P<ndim>[13])-ubyte(?P<gz>\.gz)?")
_WANTED = "train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz], and the same with t10k"
_PIECE_BYTES = 1 << 24


class IdxSource(ArraySource):
    """Pairs of an images file and a labels file, one pair a split; classes are named by their numbers."""

    def __init__(self, files: SourceFiles, pairs: dict[Split, tuple[SourceFile, SourceFile]]):
        self._files = files
        self._pairs = pairs

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Source.classes`."""
        most = max(int(labels.max()) for labels in self._labels.values())
        return tuple(str(number) for number in range(most + 1))

    @property
    def declares_classes(self) -> bool:
        """The files know numbers only: a gap in them (EMNIST's letters begin at 1) is no class without images."""
        return False

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return self._files.fingerprint([file for pair in self._pairs.values() for file in pair])

    @property
    def is_local(self) -> bool:
        """See `Source.is_local`."""
        return self._files.is_local

    def shape(self) -> tuple[int, ...]:
        """See `ArraySource.shape`."""
        return self._size(next(iter(self._pairs.values()))[0])[1:]

    def census(self) -> Census:
        """See `Source.census`; reads the labels and the headers of the images."""
        for split, (images, _) in self._pairs.items():
            self._check_count(split, self._size(images)[0])
        return Census({s: count_labels(labels, len(self.classes))[0] for s, labels in self._labels.items()})

    def parts(self) -> list[ArrayPart]:
        """See `ArraySource.parts`."""
        parts = []
        for split, (images, _) in self._pairs.items():
            pixels = parse_idx(self._files.read(images), 3, self._files.show(images))
            self._check_count(split, len(pixels))
            parts.append(ArrayPart(images.name, split, pixels, self._labels[split]))
        return parts

    @functools.cached_property
    def _labels(self) -> dict[Split, np.ndarray]:
        found = {}
        for split, (_, file) in self._pairs.items():
            found[split] = parse_idx(self._files.read(file), 1, self._files.show(file)).astype(np.int64)
            if not len(found[split]):
                raise SourceError(f"{self._files.show(file)} holds no labels: 0 rows by its header")
        return found

    def _size(self, file: SourceFile) -> tuple[int, ...]:
        """(N, H, W) by the header, without reading it all."""
        start = self._files.look(file, lambda opened: opened.read(4096))
        return _header(start, 3, self._files.show(file))

    def _check_count(self, split: Split, images: int) -> None:
        labels = len(self._labels[split])
        if images != labels:
            at, beside = (self._files.show(file) for file in self._pairs[split])
            raise SourceError(f"{at} holds {images:,} images, but {beside} holds {labels:,} labels: they don't belong "
                              "together, or one is damaged; fetch both again")


def open_idx(config: SourceConfig) -> IdxSource:
    """Finds the pairs of files in a folder, or beside the images file that the URL names.

    Raises:
        SourceError: nothing there, no such pair, or several sets in one folder.
    """
    files = SourceFiles(config)
    listed = files.listing()[0]
    if len(listed) == 1 and _is(listed[0], "images"):
        return IdxSource(files, {Split.TRAIN: (listed[0], _beside(files, config, listed[0]))})
    images = [file for file in listed if _is(file, "images")]
    if not images:
        shown = ", ".join(f.name for f in listed[:5]) + (", …" if len(listed) > 5 else "")
        raise SourceError(f"source.url: no IDX images in {files.where}; wanted are {_WANTED}, but there is: {shown}")
    splits = assign_splits(file.name for file in images)
    pairs: dict[Split, tuple[SourceFile, SourceFile]] = {}
    for file in images:
        split = splits[file.name]
        if split in pairs:
            raise SourceError(f"source.url: {files.where} holds more than one {split} set ({pairs[split][0].name}, "
                              f"{file.name}); give the URL of one images file, or a folder with one set")
        pairs[split] = (file, _partner(files, listed, file))
    return IdxSource(files, pairs)


def parse_idx(data: bytes, ndim: int, where: str) -> np.ndarray:
    """The uint8 array in an IDX file, (N,) for labels or (N, H, W) for images.

    Args:
        where: the file's address, for the message.

    Raises:
        SourceError: damaged gzip, another kind of file, or fewer or more bytes than its header says.
    """
    shape = _header(data, ndim, where)
    wanted = math.prod(shape)
    start = 4 + 4 * ndim
    body = _inflate(data, start + wanted + 1, where)[start:]
    if len(body) != wanted:
        kind = "is truncated" if len(body) < wanted else "has bytes after its end"
        raise SourceError(f"{where} {kind}: its header says {' x '.join(map(str, shape))} = {wanted:,} bytes, "
                          f"there are {'more' if len(body) > wanted else f'{len(body):,}'}; fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _header(data: bytes, ndim: int, where: str) -> tuple[int, ...]:
    """Sizes that the header gives, slowest axis first."""
    head = _inflate(data, 4 + 4 * ndim, where, whole=False)
    if len(head) < 4 + 4 * ndim:
        raise SourceError(f"{where} is truncated: {len(head)} bytes are less than its header; fetch it again")
    wanted = 0x0800 + ndim                           # 0x08: unsigned bytes; then the number of axes
    (magic,) = struct.unpack(">I", head[:4])
    if magic != wanted:
        kind = "images" if ndim == 3 else "labels"
        raise SourceError(f"{where} is no IDX file of {kind}: it begins with 0x{magic:08x} instead of 0x{wanted:08x}; "
                          "check that images and labels are not swapped")
    return struct.unpack(f">{ndim}I", head[4:4 + 4 * ndim])


def _inflate(data: bytes, most: int, where: str, whole: bool = True) -> bytes:
    """Up to `most` bytes of the content, unpacked if it is gzip, in pieces so that no header decides on the memory."""
    if data[:2] != b"\x1f\x8b":
        return data[:most]
    pieces, left = [], most
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as opened:
            while left and (piece := opened.read(min(left, _PIECE_BYTES))):
                pieces.append(piece)
                left -= len(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        if whole or sum(map(len, pieces)) < most:
            raise SourceError(f"{where} is a damaged gzip file ({e}); fetch it again") from e
    return b"".join(pieces)


def _is(file: SourceFile, kind: str) -> bool:
    match = _NAME.fullmatch(file.name)
    return match is not None and match["kind"] == kind and (match["ndim"] == "3") == (kind == "images")


def _partner(files: SourceFiles, listed: list[SourceFile], images: SourceFile) -> SourceFile:
    """The labels file of the same set, whatever its dash or packing."""
    stem = images.name.partition("images")[0]
    for file in listed:
        if _is(file, "labels") and file.name.partition("labels")[0] == stem:
            return file
    raise SourceError(f"source.url: {files.show(images)} has no labels beside it; "
                      f"wanted is {stem}labels-idx1-ubyte[.gz]")


def _beside(files: SourceFiles, config: SourceConfig, images: SourceFile) -> SourceFile:
    """The labels file in the folder of the images file that the URL names."""
    folder = (config.url or "").rpartition("/")[0] or "."
    beside = SourceFiles(config.model_copy(update={"url": folder})).listing()[0]
    own = [file for file in beside if "/" not in file.name]
    return _partner(files, own, images)
