"""What a version holds, in one immutable JSON file, and the pointer that makes a version visible.

Readers start here, never from a listing: `LATEST.json` → `manifest.json` → shards.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import CorruptShard, MissingObject, StoreError
from pipeline.plan import Kept
from pipeline.records import Checkpoint, Receipt, Scored, Snapshot, Verdict
from pipeline.redaction import public_url
from pipeline.store import Store, compact_json, json_bytes

FORMAT_VERSION = 1
MAX_BYTES = 50 * 2**20                               # of one file; a longer list of shards is split into parts


@dataclass(frozen=True)
class Pointer:
    """`LATEST.json`."""

    version: str
    manifest: str                                    # key in the dataset's folder
    manifest_sha256: str

    def data(self) -> bytes:
        """As it lies in the store."""
        return json_bytes({"version": self.version, "manifest": self.manifest, "manifest_sha256": self.manifest_sha256})


def build(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scored, verdict: Verdict,
    receipts: Iterable[Receipt], run_id: str, version: str, previous: str | None, software: Mapping[str, str],
    metadata: bytes = b"", kept: Kept | None = None, rows_are: str = "images",
) -> dict[str, Any]:
    """The manifest of a version, its list of shards left out: see `pack`. Pure.

    Args:
        receipts: one a shard, in the plan's order.
        previous: the version that this one follows.
        metadata: `png`: the content of metadata.jsonl.
        kept: the version that this one continues.
        rows_are: what a row is, in the plural: images, or points on the plane.
    """
    rows = dict.fromkeys(snapshot.classes, 0)
    rejects: dict[str, int] = {}
    size = 0
    for receipt in receipts:
        size += receipt.bytes
        for name, count in receipt.rows_per_class.items():
            rows[name] += count
        for reason, count in receipt.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + count
    manifest = {
        "format_version": FORMAT_VERSION, "dataset": config.name, "version": version, "created": created_at(version),
        "run_id": run_id, "seed": config.seed, "format": config.sample.format, "synthetic": True,
        "classes": list(snapshot.classes), "rows": sum(rows.values()), "rows_per_class": rows,
        "bytes": size, "shards": [],
        "source": {
            "url": public_url(snapshot.source_url), "format": snapshot.source_format,
            "fingerprint": snapshot.source_fingerprint, "listing_fingerprint": snapshot.source_fingerprint,
            "prepared_fingerprint": snapshot.fingerprint, "rows_per_class": snapshot.rows_per_class["train"],
        },
        "generator": {
            "model": checkpoint.model, "preset": checkpoint.preset, "digest": checkpoint.sha256,
            "config_digest": checkpoint.config_digest, "run_config_digest": config.digest(),
            "trained_kimg": checkpoint.trained_kimg,
        },
        "scores": {name: value if math.isfinite(value) else None for name, value in scorecard.scores.items()},
        "verdict": verdict.to_json(),
        "recommended_mix": {**scorecard.lift.mix, "ratio": scorecard.lift.chosen_ratio} if scorecard.lift is not None else {},
        "rejects": rejects, "software": dict(software), "previous": previous, "filter": dict(config.sample.filter),
        "truncation": config.sample.truncation,
        "continues": {"version": kept.version, "rows": kept.plan.rows, "shards": len(kept.plan)} if kept else None,
        "rows_are": rows_are,
    }
    if metadata:
        manifest["metadata"] = {"key": keys.METADATA, "bytes": len(metadata),
                                "sha256": hashlib.sha256(metadata).hexdigest()}
    return manifest


def created_at(version: str) -> str:
    """The time in a version's name, as `2026-01-31T02:00:00Z`."""
    return f"{datetime.strptime(version.split('-')[1], '%Y%m%dT%H%M%SZ'):%Y-%m-%dT%H:%M:%SZ}"


def entries(receipts: Iterable[Receipt], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The receipts' objects as the manifest lists them: one a receipt, or for `png` one an image."""
    for receipt in receipts:
        if not receipt.files:
            yield {"key": receipt.key, "rows": receipt.rows, "rows_per_class": receipt.rows_per_class,
                   "bytes": receipt.bytes, "sha256": receipt.sha256}
        for file in receipt.files:
            yield {"key": file["key"], "rows": 1, "rows_per_class": {classes[file["label"]]: 1},
                   "bytes": file["bytes"], "sha256": file["sha256"]}


def pack(listed: Iterable[dict[str, Any]], put: Callable[[str, bytes], None]) -> dict[str, Any]:
    """The manifest's `shards`; when one file would grow past `MAX_BYTES`, `shards: []` and its `parts`, which are put.

    A part is `{"shards": […]}`, listed as {key, shards, bytes, sha256}. Whatever is put before the manifest is seen by
    nobody, so a long list need not be held.
    """
    parts: list[dict[str, Any]] = []
    some: list[dict[str, Any]] = []
    size = 0

    def put_part() -> None:
        data = compact_json({"shards": some})
        key = keys.manifest_part(len(parts))
        put(key, data)
        parts.append({"key": key, "shards": len(some), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        some.clear()

    for entry in listed:
        length = len(compact_json(entry)) + 1
        if some and size + length > MAX_BYTES // 2:      # in line and indented it would be half as long again
            put_part()
            size = 0
        some.append(entry)
        size += length
    if not parts:
        return {"shards": some}
    put_part()
    return {"shards": [], "parts": parts}


# reading


def latest(dataset: Store) -> tuple[Pointer | None, str | None]:
    """The pointer and the token of its state for `Store.swap`; (None, None) when nothing is published.

    Raises:
        StoreError: what lies there is no pointer.
    """
    try:
        data, token = dataset.get_versioned(keys.LATEST)
    except MissingObject:
        return None, None
    try:
        found = json.loads(data)
        return Pointer(str(found["version"]), str(found["manifest"]), str(found["manifest_sha256"])), token
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{dataset.where(keys.LATEST)} is no pointer to a version ({e}); it was damaged or is not "
                         "ganmill's") from e


def read(folder: Store, sha256: str | None = None) -> dict[str, Any]:
    """The manifest in a version's folder.

    Raises:
        MissingObject: there is none.
        CorruptShard: it is not the one with this sha256, or no manifest of a format known here.
    """
    data = folder.get(keys.MANIFEST)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptShard(f"{folder.where(keys.MANIFEST)} is not what LATEST.json says: its sha256 is "
                           f"{hashlib.sha256(data).hexdigest()[:12]}…, not {sha256[:12]}…")
    try:
        manifest: dict[str, Any] = json.loads(data)
        known = manifest["format_version"] == FORMAT_VERSION
    except (ValueError, KeyError, TypeError) as e:
        raise CorruptShard(f"{folder.where(keys.MANIFEST)} is no manifest: {e}") from e
    if not known:
        raise CorruptShard(f"{folder.where(keys.MANIFEST)} has format {manifest['format_version']}; this ganmill reads "
                           f"{FORMAT_VERSION}: use a newer one")
    return manifest


def shards(manifest: Mapping[str, Any], folder: Store) -> Iterator[dict[str, Any]]:
    """Every shard's entry, from the parts too.

    Raises:
        CorruptShard: a part is not what the manifest says.
    """
    yield from manifest["shards"]
    for part in manifest.get("parts", ()):
        data = folder.get(part["key"])
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise CorruptShard(f"{folder.where(part['key'])}: sha256 differs from the manifest's")
        yield from json.loads(data)["shards"]


def history(dataset: Store) -> Iterator[dict[str, Any]]:
    """Manifests of the published versions, the latest first, as far back as they were kept."""
    pointer, _ = latest(dataset)
    if pointer is None:
        return
    manifest: dict[str, Any] | None = read(dataset.child(keys.version(pointer.version)), pointer.manifest_sha256)
    while manifest is not None:
        yield manifest
        try:
            before = manifest.get("previous")
            manifest = read(dataset.child(keys.version(before))) if before else None
        except MissingObject:                            # retention took it
            return


def locate(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, str | None]:
    """(the dataset's folder, name of the version if `url` is a version's)."""
    base, found, name = url.rstrip("/").rpartition(f"/{keys.VERSIONS}/")
    if found and name and "/" not in name:
        return Store(base, storage_options), name
    return Store(url, storage_options), None
