"""Source → Snapshot: images of one form, in three splits, in the run folder, with a fingerprint of their content.

What decides the result: the items of the source (not their order, nor their files' names), the config's `source` and
`prepare` sections, and the seed. How many threads read, from where, and when, does not.

The rules, in the order in which they apply:

1. What can't be read or has no good label goes to quarantine; so do items of a split whose prepared pixels occur under
   two labels, for which label is right can't be known.
2. An official test (or validation) split stays whole. Train items whose prepared pixels occur in it are left out.
   Without an official test split, its share of every class is held out of the whole source, before any subset is drawn.
3. `source.subset` draws from what is not held out.
4. A share of that becomes validation. `splits.val` and `splits.test` are shares of the whole where neither split is
   official; where test is, `splits.val` is the share of the (drawn) train part.

Items whose prepared pixels are equal always stay together.
"""

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import CorruptShard, MissingObject, RunMismatch, SourceError
from pipeline.inspection import by_name, check, check_large_enough, inspect, shares, shortfall, wanted_classes
from pipeline.progress import Progress
from pipeline.records import Snapshot
from pipeline.redaction import public_url
from pipeline.sources import open_source
from pipeline.sources.reading import Form, Readings, read_items
from pipeline.sources.source import BadItem, Census, Reason, Source, Split
from pipeline.splits import conflicting, draw, groups_per_class, hold_out, quotas, repeated
from pipeline.store import Store

__all__ = ["LabelledImages", "inspect", "load_split", "prepare"]

_SHOWN = 5                                           # items named in a message


@dataclass(frozen=True)
class LabelledImages:
    """One split in memory."""

    images: np.ndarray                               # uint8 (N, C, H, W)
    labels: np.ndarray                               # int64 (N,)


@dataclass(frozen=True)
class _Opened:
    """A source that passed the first checks."""

    config: Config
    source: Source
    census: Census
    asked: np.ndarray                                # int64 (classes,), see `splits.quotas`

    @property
    def official(self) -> frozenset[Split]:
        """Held-out splits that the source brought."""
        return self.census.official

    @property
    def where(self) -> str:
        """The source's address, fit to be printed."""
        return public_url(self.config.source.url) or self.config.source.format


def prepare(config: Config, run: Store, progress: Progress, threads: int | None = None) -> Snapshot:
    """Reads the source and puts `prepared/<split>.safetensors`, `quarantine.jsonl` and, last, `snapshot.json`.

    A snapshot that the run folder holds already is returned as it is, while source and config are unchanged.

    Args:
        run: the run's folder.
        threads: that decode; by default one a CPU, more for a remote source.

    Raises:
        SourceError: the source can't be read, lacks a class, has a class too small to be split, or holds more than
            `prepare.max_bad` items that can't be used.
        ConfigError: `source.subset` does not fit the source.
        RunMismatch: the run folder's snapshot is of another config or another state of the source.
        StoreError: the run folder can't be written.
    """
    began = time.monotonic()
    source = open_source(config.source, config.seed)
    source_fingerprint = source.fingerprint()
    existing = _existing(config, run, source_fingerprint)
    if existing is not None:
        return existing
    census = source.census()
    check(config, source, census)
    opened = _Opened(config, source, census, quotas(config.source.subset, source.classes))
    form = Form(config.prepare.resolution, 1 if config.prepare.channels == "grey" else 3, config.seed)
    readings = read_items(source, form, opened.asked, Split.TEST in opened.official, census.total, progress, threads)
    progress.update(census.total, census.total)
    stays, left_out = _sort_out(readings, opened.official)
    left_out = sorted([*readings.bad, *left_out], key=lambda item: (item.name, item.reason))
    _put_quarantine(run, left_out, source.classes)
    _check_share(opened, run, left_out, len(readings.labels) + len(readings.bad))
    rows = _assign(opened, readings, stays)
    fingerprint = _put_arrays(run, readings, rows, source.classes)
    snapshot = Snapshot(fingerprint=fingerprint, source_fingerprint=source_fingerprint,
                        **_facts(opened, form, readings, rows, left_out), seconds=round(time.monotonic() - began, 3))
    run.put_json(keys.SNAPSHOT, snapshot.to_json())
    for note in snapshot.notes:
        progress.note(note)
    return snapshot


def load_split(run: Store, split: str) -> LabelledImages:
    """A prepared split: train, val or test.

    Raises:
        MissingObject: not prepared in this run folder.
        CorruptShard: the object is not what `prepare` puts.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    key = keys.prepared(split)
    try:
        arrays = load(run.get(key))
        images, labels = arrays["images"].copy(), arrays["labels"].copy()       # writable, as torch wants them
    except (SafetensorError, KeyError, ValueError) as e:
        raise CorruptShard(f"{run.where(key)} is damaged ({e}); "
                           f"delete {run.where(keys.SNAPSHOT)} and start again") from e
    return LabelledImages(images, labels)


def _existing(config: Config, run: Store, source_fingerprint: str) -> Snapshot | None:
    """The run folder's snapshot if it is whole and still fits, None if there is none."""
    try:
        found = Snapshot.from_json(run.get_json(keys.SNAPSHOT))
    except MissingObject:
        return None
    differing = _differing(found.prepared_with, _decisive(config))
    if differing:
        raise RunMismatch(f"{run.where()} holds data prepared with another config (differs in: {', '.join(differing)});"
                          " give another --run-id, or the config that it was begun with")
    if found.source_fingerprint != source_fingerprint:
        raise RunMismatch(f"{run.where()} holds data prepared from another state of the source "
                          f"{public_url(config.source.url) or config.source.format}; give another --run-id to start on "
                          "it as it is now")
    return found if all(run.exists(keys.prepared(split)) for split in Split) else None


def _decisive(config: Config) -> dict[str, Any]:
    """What of the config decides the snapshot, without secrets."""
    content = config.model_dump(mode="json", include={"seed", "source", "prepare"})
    content["source"].pop("storage_options")
    content["source"]["url"] = public_url(content["source"]["url"])
    return content


def _differing(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [found for key in sorted({*before, *now})
                for found in _differing(before.get(key), now.get(key), f"{path}.{key}" if path else key)]
    return [] if before == now else [path]


def _sort_out(readings: Readings, official: frozenset[Split]) -> tuple[np.ndarray, list[BadItem]]:
    """Finds copies of held-out images and conflicting labels.

    Returns:
        bool (N,) of what stays, and the rest with their reasons.
    """
    stays = np.ones(len(readings.labels), bool)
    left_out: list[BadItem] = []

    def drop(rows: np.ndarray, reason: Reason, detail: str) -> None:
        stays[rows] = False
        left_out.extend(BadItem(readings.names[i], reason, detail, int(readings.labels[i]), Split(readings.splits[i]))
                        for i in rows.tolist())

    protected = np.zeros(0, readings.digests.dtype)
    for split in (Split.TEST, Split.VAL, Split.TRAIN):           # the first of them keeps the image
        if split is not Split.TRAIN and split not in official:
            continue
        rows = np.flatnonzero(readings.splits == split.value)
        copies = np.isin(readings.digests[rows], protected)
        drop(rows[copies], Reason.HELD_OUT, "the same pixels lie in an official test or validation split")
        rows = rows[~copies]
        protected = np.concatenate([protected, readings.digests[rows]])
        drop(rows[conflicting(readings.labels[rows], readings.digests[rows])], Reason.CONFLICT,
             "the same pixels have another label elsewhere")
    return stays, left_out


def _put_quarantine(run: Store, left_out: list[BadItem], classes: tuple[str, ...]) -> None:
    """One JSON line an item; put before anything is decided, so that a refusal can be looked into."""
    lines = []
    for item in left_out:
        known = item.label is not None and 0 <= item.label < len(classes)
        lines.append(json.dumps({"file": item.name, "reason": item.reason, "detail": item.detail, "split": item.split,
                                 "class": classes[item.label] if known else None, "label": item.label}) + "\n")  # type: ignore[index]
    run.put(keys.QUARANTINE, "".join(lines).encode())


def _check_share(opened: _Opened, run: Store, left_out: list[BadItem], total: int) -> None:
    """Refuses a source with more bad items than `prepare.max_bad` allows."""
    bad = [item for item in left_out if item.reason.is_bad]
    allowed = opened.config.prepare.max_bad
    if len(bad) <= allowed * total:
        return
    counts = Counter(item.reason.value for item in bad)
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counts.most_common())
    one_each: dict[Reason, BadItem] = {}
    for item in bad:
        one_each.setdefault(item.reason, item)
    first = "; ".join(f"{item.name}: {item.reason} ({item.detail})" for item in list(one_each.values())[:_SHOWN])
    raise SourceError(
        f"{len(bad):,} of {total:,} items of {opened.where} can't be used ({len(bad) / total:.1%}), more than "
        f"prepare.max_bad allows ({allowed:.1%}): {reasons}. For example {first}. All are listed in "
        f"{run.where(keys.QUARANTINE)}; mend or remove them, or raise prepare.max_bad"
    )


def _assign(opened: _Opened, readings: Readings, stays: np.ndarray) -> dict[Split, np.ndarray]:
    """Row indices of every split, int64, each ordered by content hash.

    Raises:
        SourceError: a class has too few different images left for that.
    """
    labels, digests, official = readings.labels, readings.digests, opened.official
    rows = {split: np.flatnonzero(stays & (readings.splits == split.value)) for split in Split}
    present = wanted_classes(opened.config, opened.source, opened.census, opened.asked)
    classes = len(opened.asked)
    different = {split: groups_per_class(labels[found], digests[found], classes) for split, found in rows.items()}
    check_large_enough(opened.source, different, present, official, opened.where, "different usable image")
    test_share, val_share = shares(opened.config.prepare.splits, official)
    pool = rows[Split.TRAIN]
    if Split.TEST not in official:
        held = hold_out(labels[pool], digests[pool], test_share, leave=2 - (Split.VAL in official))
        rows[Split.TEST], pool = pool[held], pool[~held]
    pool = pool[draw(labels[pool], readings.keys[pool], opened.asked)]
    if Split.VAL not in official:
        held = hold_out(labels[pool], digests[pool], val_share, leave=1)
        rows[Split.VAL], pool = pool[held], pool[~held]
        for c in np.setdiff1d(present, labels[rows[Split.VAL]]):
            raise SourceError(f"all images of class {opened.source.classes[c]!r} that source.subset draws from "
                              f"{opened.where} have the same pixels, so none can be held out for validation; draw more")
    rows[Split.TRAIN] = pool
    return {split: found[np.argsort(digests[found], kind="stable")] for split, found in rows.items()}


def _facts(opened: _Opened, form: Form, readings: Readings, rows: dict[Split, np.ndarray],
           left_out: list[BadItem]) -> dict[str, Any]:
    """The fields of the snapshot that follow from what went where."""
    config, source = opened.config, opened.source
    kept = np.concatenate(list(rows.values()))
    classes = len(source.classes)
    counts = {split: np.bincount(readings.labels[found], minlength=classes) for split, found in rows.items()}
    drawn = counts[Split.TRAIN] + counts[Split.VAL] * (Split.VAL not in opened.official)
    converted = Counter(mended.value for i in kept.tolist() for mended in readings.mended[i])
    return {
        "source_format": config.source.format, "source_url": public_url(config.source.url), "classes": source.classes,
        "resolution": form.resolution, "channels": form.channels,
        "rows_per_class": {split.value: by_name(source, counts[split]) for split in Split},
        "official_test": Split.TEST in opened.official,
        "quarantined": dict(sorted(Counter(item.reason.value for item in left_out).items())),
        "converted": dict(sorted(converted.items())), "duplicates": repeated(readings.digests[kept]),
        "prepared_with": _decisive(config),
        "notes": (*source.notes, *shortfall(source, drawn, opened.asked)),
    }


def _put_arrays(run: Store, readings: Readings, rows: dict[Split, np.ndarray], classes: tuple[str, ...]) -> str:
    """Puts one object a split.

    Returns:
        sha256 over classes, split names, shapes and content.
    """
    from safetensors.numpy import save

    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in (Split.TRAIN, Split.VAL, Split.TEST):
        images, labels = _gather(readings.images, rows[split]), readings.labels[rows[split]]
        digest.update(json.dumps([split.value, images.shape]).encode())
        digest.update(images.data)
        digest.update(labels.astype("<i8").data)
        run.put(keys.prepared(split), save({"images": images, "labels": labels}))
    return digest.hexdigest()


def _gather(images: Any, rows: np.ndarray) -> np.ndarray:
    """uint8 (n, C, R, R): the rows of an array, or of a list of arrays."""
    if isinstance(images, np.ndarray):
        return np.ascontiguousarray(images[rows])
    return np.stack([images[i] for i in rows.tolist()])
