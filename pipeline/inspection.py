"""What a source holds and whether it can be prepared as the config asks, from its listing and labels alone.

`ganmill validate` shows it; `prepare` asks the same before it reads an image, so that a class without images or too
small to be split is told in seconds.
"""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.config import Config, Splits
from pipeline.errors import ConfigError, SourceError
from pipeline.records import Record
from pipeline.redaction import public_url
from pipeline.sources import open_source
from pipeline.sources.decoding import decode, dimensions
from pipeline.sources.geometry import describe
from pipeline.sources.source import ArraySource, Census, Source, Split, Unreadable
from pipeline.splits import UNLIMITED, held_out_rows, quotas

_SHOWN = 5                                           # classes named in a message
_SAMPLE_ITEMS = 8                                    # decoded to see what they are and how long it takes
_ITEM_S = 35e-6                                      # to hash, sort and put one, beside decoding
_ARRAY_ROWS_PER_S = 100_000                          # 28 px to 32 px with hashing, one core: benchmarks/sources.py


@dataclass(frozen=True)
class SourceSummary(Record):
    """What a source holds and what preparing it would give, known without decoding it."""

    format: str
    url: str | None
    fingerprint: str
    classes: tuple[str, ...]
    source_rows: dict[str, dict[str, int]]           # split as the source has it → class name → rows
    rows_per_class: dict[str, dict[str, int]]        # split → class name → rows expected, duplicates and damage aside
    official_test: bool
    quarantined: dict[str, int] = field(default_factory=dict)   # reason → items known so far
    image: str = ""                                  # e.g. "28 x 28 grey, padded to 32 x 32 by their border"
    estimated_seconds: float = 0.0                   # to prepare
    notes: tuple[str, ...] = ()


def inspect(config: Config) -> SourceSummary:
    """What the source holds, by its listing and labels and a few decoded images; writes nothing.

    Raises:
        SourceError, ConfigError: whatever `prepare` would find before it begins to read images.
    """
    source = open_source(config.source, config.seed)
    census = source.census()
    check(config, source, census)
    asked = quotas(config.source.subset, source.classes)
    expected = _expected(config, source, census, asked)
    image, seconds, notes = _look(config, source, census.total)
    drawn = sum(expected[split] for split in (Split.TRAIN, Split.VAL) if split not in census.official)
    return SourceSummary(
        format=config.source.format, url=public_url(config.source.url), fingerprint=source.fingerprint(),
        classes=source.classes, source_rows={split.value: by_name(source, n) for split, n in census.rows.items()},
        rows_per_class={split.value: by_name(source, n) for split, n in expected.items()},
        official_test=Split.TEST in census.official,
        quarantined={reason.value: count for reason, count in census.bad.items()},
        image=image, estimated_seconds=seconds,
        notes=(*source.notes, *shortfall(source, np.asarray(drawn), asked), *notes),
    )


def check(config: Config, source: Source, census: Census) -> None:
    """Refuses, before any image is read, a source that can't be split as the config asks.

    Raises:
        SourceError: no labelled image at all, a class without one, or one too small.
        ConfigError: the subset names an unknown class or leaves a class too few images.
    """
    where = public_url(config.source.url) or config.source.format
    asked = quotas(config.source.subset, source.classes)
    if not any(counts.any() for counts in census.rows.values()):
        faults = ", ".join(f"{count:,} x {reason}" for reason, count in census.bad.items())
        raise SourceError(f"source.url: {where} holds no labelled image" + (f" ({faults})" if faults else ""))
    present = wanted_classes(config, source, census, asked)
    of_class = sum(census.rows.values(), np.zeros(len(source.classes), np.int64))
    for c in present:
        if of_class[c] == 0:
            raise SourceError(f"class {source.classes[c]!r} has no image in {where}: add some, remove the class from "
                              f"the source, or leave it out with source.subset.classes: {_others(source, present, c)}")
    check_large_enough(source, census.rows, present, census.official, where, "image")
    least = 2 - (Split.VAL in census.rows)
    for c in present:
        if asked[c] < least:
            raise ConfigError(f"source.subset asks for {asked[c]} of class {source.classes[c]!r}; at least {least} are "
                              "needed (train and val): raise per_class or head, or lower ratio")


def wanted_classes(config: Config, source: Source, census: Census, asked: np.ndarray) -> list[int]:
    """The classes that must have images: all that the subset doesn't leave out.

    A number without an image is none of them where the source only knows numbers: nobody said there is such a class.
    """
    named = source.declares_classes or (config.source.subset is not None and config.source.subset.classes is not None)
    of_class = sum(census.rows.values(), np.zeros(len(source.classes), np.int64))
    return [c for c in range(len(source.classes)) if asked[c] > 0 and (named or of_class[c] > 0)]


def check_large_enough(source: Source, rows: Mapping[Split, np.ndarray], present: Sequence[int],
                       official: Collection[Split], where: str, what: str) -> None:
    """Refuses a class that can't have an image in every split.

    Args:
        rows: split as the source has it → int64 (classes,).
        present: classes that must have images.
        official: held-out splits that the source brought.
        what: is counted, in the singular.
    """
    needed = [split for split in (Split.TRAIN, Split.VAL, Split.TEST) if split not in official]
    for c in present:
        name, count = source.classes[c], int(rows[Split.TRAIN][c]) if Split.TRAIN in rows else 0
        leave_out = f"leave the class out with source.subset.classes: {_others(source, present, c)}"
        if count < len(needed):
            raise SourceError(
                f"class {name!r} has {count} {what}{'' if count == 1 else 's'}{' to train on' if official else ''} in "
                f"{where}; at least {len(needed)} {'is' if len(needed) == 1 else 'are'} needed ({', '.join(needed)}): "
                f"add some, or {leave_out}"
            )
        for split in sorted(official):
            if rows[split][c] == 0:
                raise SourceError(f"class {name!r} has no {what} in the official {split} split of {where}: add some, "
                                  f"{leave_out}, or point source.url at the train part alone")


def _others(source: Source, present: Sequence[int], left_out: int) -> str:
    names = [source.classes[c] for c in present if c != left_out]
    return "[" + ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "") + "]"


def by_name(source: Source, counts: np.ndarray) -> dict[str, int]:
    """Class name → rows."""
    return dict(zip(source.classes, counts.tolist()))


def shares(splits: Splits, official: Collection[Split]) -> tuple[float, float]:
    """(test's share of all, val's share of what is drawn from the rest)."""
    return (0.0, splits.val) if Split.TEST in official else (splits.test, splits.val / (1 - splits.test))


def _expected(config: Config, source: Source, census: Census, asked: np.ndarray) -> dict[Split, np.ndarray]:
    """Split → int64 (classes,), were every item sound and none a duplicate."""
    test_share, val_share = shares(config.prepare.splits, census.official)
    counts = {split: np.zeros(len(source.classes), np.int64) for split in (Split.TRAIN, Split.VAL, Split.TEST)}
    for c in wanted_classes(config, source, census, asked):
        pool = int(census.rows[Split.TRAIN][c])
        for split in census.official:
            counts[split][c] = census.rows[split][c]
        if Split.TEST not in census.official:
            counts[Split.TEST][c] = held_out_rows(pool, test_share, 2 - (Split.VAL in census.official))
            pool -= int(counts[Split.TEST][c])
        pool = min(pool, int(asked[c]))
        if Split.VAL not in census.official:
            counts[Split.VAL][c] = held_out_rows(pool, val_share, 1)
            pool -= int(counts[Split.VAL][c])
        counts[Split.TRAIN][c] = pool
    return counts


def shortfall(source: Source, rows: np.ndarray, asked: np.ndarray) -> list[str]:
    """A note for every class that has fewer rows (int64 (classes,)) than the subset asks for."""
    short = [c for c in range(len(asked)) if rows[c] < asked[c] < UNLIMITED]
    return [f"class {source.classes[c]!r} has {rows[c]} of the {asked[c]} images that source.subset asks for: all are "
            "taken" for c in short if rows[c]]


def _look(config: Config, source: Source, total: int) -> tuple[str, float, list[str]]:
    """(what the images are, seconds that preparing will take, notes), from the first few."""
    resolution = config.prepare.resolution
    if isinstance(source, ArraySource):
        return _described(source.shape(), resolution), round(0.5 + total / _ARRAY_ROWS_PER_S, 1), []
    shapes: Counter[tuple[int, ...]] = Counter()
    notes, looked, began = [], 0, 0.0
    with contextlib.closing(source.items()) as items:
        for item in itertools.islice(items, _SAMPLE_ITEMS):
            try:
                payload = item.load()
                if isinstance(payload, np.ndarray):
                    shapes[payload.shape] += 1
                else:
                    channels = decode(payload, resolution)[0].shape[2]
                    shapes[(*dimensions(payload), channels)] += 1
            except Unreadable as e:
                notes.append(f"{item.name} can't be used: {e.reason} ({e.detail})")
            began, looked = began or time.monotonic(), looked + 1         # the first one opens files and loads decoders
    seconds = (time.monotonic() - began) / max(looked - 1, 1) + _ITEM_S
    return _described(shapes.most_common(1)[0][0], resolution) if shapes else "", round(0.5 + seconds * total, 1), notes


def _described(shape: tuple[int, ...], resolution: int) -> str:
    kind = "colour" if len(shape) > 2 and shape[2] == 3 else "grey"
    return f"{shape[0]} x {shape[1]} {kind}, {describe(shape[0], shape[1], resolution)}"


