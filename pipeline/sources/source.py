"""What every source of labelled images offers to `prepare`, whatever the format it lies in."""

import abc
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

MAX_CLASSES = 10_000                                 # more labels than that are ids or captions, not classes


class Split(StrEnum):
    """Where a row belongs. `TRAIN` also holds everything that the source did not assign to a split itself."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Reason(StrEnum):
    """Why an item was left out."""

    EMPTY = "zero bytes"
    UNREADABLE = "unreadable file"
    NOT_AN_IMAGE = "not an image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    BOMB = "decompression bomb"
    MODE = "unsupported pixels"
    NO_LABEL = "label missing"
    LABEL_RANGE = "label out of range"
    CONFLICT = "conflicting labels"
    HELD_OUT = "also in a held-out split"

    @property
    def is_bad(self) -> bool:
        """Whether it counts against `prepare.max_bad`; a copy of a test image is sound, only not for training."""
        return self is not Reason.HELD_OUT


class Mended(StrEnum):
    """What was done to an item so that it could stay."""

    SIXTEEN_BIT = "16-bit to 8-bit"
    FLOAT = "float to 8-bit"
    ONE_BIT = "1-bit to 8-bit"
    PALETTE = "palette to colour"
    CMYK = "CMYK to RGB"
    ALPHA = "transparency over white"
    COLOR_SPACE = "other colour space to RGB"
    ROTATION = "turned upright by EXIF"
    FIRST_FRAME = "first frame of several"
    GREY = "colour to grey"


class Unreadable(Exception):
    """One item can't be used; caught where items are read and turned into a `BadItem`."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item in quarantine."""

    name: str
    reason: Reason
    detail: str
    label: int | None = None
    split: Split = Split.TRAIN


@dataclass(frozen=True, slots=True)
class RawItem:
    """One labelled image as the source holds it."""

    name: str                                        # file, or file[row]
    label: int | None                                # as the source numbers; may be out of range
    payload: bytes | np.ndarray | Callable[[], bytes]           # encoded image, uint8 (H, W[, 3]), or how to read it
    split: Split = Split.TRAIN
    size: int = 0                                    # bytes that are to be read, where reading is left to the taker

    def load(self) -> bytes | np.ndarray:
        """The payload, read if it has to be.

        Raises:
            Unreadable: this one file can't be read though the source can.
        """
        return self.payload() if callable(self.payload) else self.payload


@dataclass(frozen=True)
class ArrayPart:
    """Decoded images of one split that lie in one array."""

    name: str                                        # rows are called name[i]
    split: Split
    images: np.ndarray                               # uint8 (N, H, W) or (N, H, W, 3)
    labels: np.ndarray                               # int64 (N,)


@dataclass(frozen=True)
class Census:
    """How many rows lie where, as far as can be known without decoding an image."""

    rows: dict[Split, np.ndarray]                    # split → int64 (classes,)
    bad: dict[Reason, int] = field(default_factory=dict)        # items whose label is missing or out of range

    @classmethod
    def of_files(cls, labels: Iterable[tuple[Split, np.ndarray]], classes: int) -> "Census":
        """From the split of each file and its labels, int64 (N,), as `count_labels` takes them."""
        rows: dict[Split, np.ndarray] = {}
        bad: Counter[Reason] = Counter()
        for split, numbers in labels:
            counts, faults = count_labels(numbers, classes)
            rows[split] = rows[split] + counts if split in rows else counts
            bad.update(faults)
        return cls(rows, dict(bad))

    @property
    def official(self) -> frozenset[Split]:
        """Held-out splits that the source brought."""
        return frozenset(self.rows) - {Split.TRAIN}

    @property
    def total(self) -> int:
        """All items, those with a bad label included."""
        return sum(int(counts.sum()) for counts in self.rows.values()) + sum(self.bad.values())


class Source(abc.ABC):
    """Labelled images somewhere. Opening one lists files at most; what costs more happens at the first use."""

    notes: tuple[str, ...] = ()                      # what a reader should know of how the source was understood

    @property
    @abc.abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names in the source's numbering."""

    @property
    def is_local(self) -> bool:
        """Whether reading costs little more than listing; from afar more is fetched at once."""
        return True

    @property
    def declares_classes(self) -> bool:
        """Whether the source names its classes itself, so that one without an image is a fault."""
        return True

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """sha256 that changes when the source changes: from names, sizes and time stamps, or from the content."""

    @abc.abstractmethod
    def census(self) -> Census:
        """Rows per split and class, without decoding."""

    @abc.abstractmethod
    def items(self) -> Generator[RawItem]:
        """Every item once, in an order of no meaning."""


class ArraySource(Source):
    """A source whose images lie decoded in arrays of one shape a split, so that they can be handled all at once."""

    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3) of the images, without reading them all."""

    @abc.abstractmethod
    def parts(self) -> list[ArrayPart]:
        """The arrays; at most one a split."""

    def items(self) -> Generator[RawItem]:
        """See `Source.items`; the payloads are views into the arrays."""
        for part in self.parts():
            for i, label in enumerate(part.labels.tolist()):
                yield RawItem(f"{part.name}[{i}]", label, part.images[i], part.split)


def count_labels(labels: np.ndarray, classes: int) -> tuple[np.ndarray, dict[Reason, int]]:
    """Rows per class, and how many labels are none: below 0 is missing (the usual -1), beyond the last out of range.

    Args:
        labels: int64 (N,).

    Returns:
        int64 (classes,), and the faults.
    """
    good = (labels >= 0) & (labels < classes)
    faults = {Reason.NO_LABEL: int((labels < 0).sum()), Reason.LABEL_RANGE: int((labels >= classes).sum())}
    return np.bincount(labels[good], minlength=classes).astype(np.int64), {r: n for r, n in faults.items() if n}


def label_fault(label: int | None, classes: int) -> tuple[Reason, str] | None:
    """The fault of a label, None for a good one."""
    if label is None or label < 0:
        return Reason.NO_LABEL, "no label" if label is None else f"label {label}"
    if label >= classes:
        return Reason.LABEL_RANGE, f"label {label}, but the classes are numbered 0 to {classes - 1}"
    return None
