"""Making a version visible: exactly once, or not at all.

One committer checks that every shard is whole, tidies the version's folder, writes card, report and manifest, and moves
`LATEST.json` last. Whoever dies on the way leaves nothing visible; committing again gives the same version.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import keys, manifest
from pipeline.config import Config
from pipeline.errors import CorruptShard, GateRefused, MissingObject, PublicationConflict
from pipeline.ledger import Ledger, Sizes
from pipeline.manifest import Pointer
from pipeline.plan import Plan, was_published
from pipeline.records import Checkpoint, Receipt, Scored, ShardSpec, Snapshot, Verdict, Version
from pipeline.store import Store, json_bytes
from pipeline.verification import verify

__all__ = ["Attachments", "commit", "show", "verify"]

Attachments = Mapping[str, bytes] | Callable[[dict[str, Any]], Mapping[str, bytes]]
"""Files beside the manifest by key in the version's folder (README.md, …), or a function that makes them from it."""

_ESSENCE = ("version", "run_id", "previous", "rows_per_class", "shards", "parts")   # what committers of a run agree on
_SHOWN = ("version", "created", "rows", "rows_per_class", "bytes", "format", "scores", "verdict", "source", "generator",
          "recommended_mix", "rejects", "run_id", "seed", "classes", "software", "continues", "rows_are")
MAX_MOVES = 10                                       # tries to move the pointer while others move it too


def commit(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scored, verdict: Verdict,
    plan: Sequence[ShardSpec], receipts: Iterable[Receipt], dataset: Store, run_id: str, version: str,
    attachments: Attachments, *, software: Mapping[str, str] | None = None, rows_are: str = "images",
) -> Version:
    """Publishes the version, or finds that it was published before.

    Args:
        plan, receipts: what was to be made and what was.
        dataset: the dataset's folder; version: name of the version, from the plan.
        attachments: given the manifest, with the list of shards in line.

    Raises:
        GateRefused: the verdict is no, and it counts.
        CorruptShard: a shard is missing or not what its receipt says; names it.
        PublicationConflict: a later version became visible meanwhile; nothing of this one did.
    """
    if verdict.enforced and not verdict.passed:
        raise GateRefused(f"{' '.join(verdict.reasons)} Nothing was published.")
    folder, run = dataset.child(keys.version(version)), dataset.child(keys.run(run_id))
    ordered: Ledger | None = None
    metadata, packed = b"", {}
    for _ in range(MAX_MOVES):
        pointer, token = manifest.latest(dataset)
        if pointer is not None and was_published(dataset, version):
            return _as_version(manifest.read(folder), folder, pointer)
        _check_order(pointer, version, dataset)
        if ordered is None:
            ordered = _complete(plan, receipts)
            metadata = _metadata(ordered, run)
            _tidy(folder, ordered, attachments if isinstance(attachments, Mapping) else ())
            packed = manifest.pack(manifest.entries(ordered, snapshot.classes), folder.put)
        content = packed | {name: value for name, value in manifest.build(
            config, snapshot, checkpoint, scorecard, verdict, ordered, run_id, version,
            pointer.version if pointer is not None else None, _software() if software is None else software, metadata,
            plan.kept if isinstance(plan, Plan) else None, rows_are,
        ).items() if name != "shards"}
        if metadata:
            folder.put(keys.METADATA, metadata)
        content, digest = _put_manifest(folder, content, attachments)
        ours = Pointer(version, f"{keys.version(version)}/{keys.MANIFEST}", digest)
        if dataset.swap(keys.LATEST, ours.data(), token):
            return _as_version(content, folder, ours)
    raise PublicationConflict(f"{dataset.where(keys.LATEST)} was moved by others {MAX_MOVES} times in a row; version "
                              f"{version} is whole but not visible: publish again with the same --run-id")


def _check_order(pointer: Pointer | None, version: str, dataset: Store) -> None:
    if pointer is not None and pointer.version > version:
        raise PublicationConflict(
            f"{dataset.where()} moved on to version {pointer.version} while {version} was being made, so {version} "
            "can't be published any more and nothing of it is visible; the same --run-id keeps the training, mints anew"
        )


def _complete(plan: Sequence[ShardSpec], receipts: Iterable[Receipt]) -> Ledger:
    """The receipts in the plan's order, one a shard."""
    if not isinstance(receipts, Ledger):
        given = list(receipts)
        strange = sorted(receipt.index for receipt in given if receipt.index >= len(plan))
        if strange:
            raise CorruptShard(f"receipts of shards {strange[:5]} belong to no shard of the plan")
        receipts = Ledger(len(plan))
        for receipt in given:
            receipts.add(receipt)
    for spec, found in zip(plan, receipts.slots()):
        if found is None:
            raise CorruptShard(f"shard {spec.index} of {spec.of} has no receipt: sample again with the same --run-id")
        if found.rows != spec.rows:
            raise CorruptShard(f"shard {spec.index} holds {found.rows} rows, planned were {spec.rows}: sample again")
    return receipts


def _metadata(receipts: Iterable[Receipt], run: Store) -> bytes:
    """`png`: all shards' lines of metadata.jsonl."""
    parts = []
    for receipt in receipts:
        if receipt.files:
            part = run.get(receipt.key)
            if hashlib.sha256(part).hexdigest() != receipt.sha256:
                raise CorruptShard(f"{run.where(receipt.key)} is not what the receipt of shard {receipt.index} says")
            parts.append(part)
    return b"".join(parts)


def _tidy(folder: Store, receipts: Iterable[Receipt], attachments: Iterable[str]) -> None:
    """Checks by one listing that every shard is there in its size, and removes what nothing refers to.

    So a plain glob over `data/` sees the version and nothing else.
    """
    sizes, named, listed = Sizes(folder.walk()), array("q"), 0
    for receipt in receipts:
        for entry in receipt.files or ({"key": receipt.key, "bytes": receipt.bytes},):
            size = sizes.get(entry["key"])
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise CorruptShard(f"{folder.where(entry['key'])} {found}, its receipt says {entry['bytes']} bytes: "
                                   "sample again with the same --run-id")
            named.append(hash(entry["key"]))
            listed += 1
    folder.sweep(keys.DATA)
    beside = {keys.MANIFEST, keys.METADATA, keys.CARD, keys.CROISSANT, keys.REPORT, keys.LIFT_ROWS_PUBLISHED, *attachments}
    if listed + sum(sizes.get(key) is not None for key in beside) == len(sizes):
        return
    referenced = np.sort(np.frombuffer(named, dtype=np.int64))

    def kept(key: str) -> bool:
        at = int(np.searchsorted(referenced, hash(key)))
        return key in beside or key.startswith(f"{keys.MANIFEST_PARTS}/") or (at < len(referenced) and referenced[at] == hash(key))

    for key in [info.key for info in folder.walk() if not kept(info.key)]:
        folder.delete(key)


def _put_manifest(folder: Store, content: dict[str, Any], attachments: Attachments) -> tuple[dict[str, Any], str]:
    """Puts attachments and then the manifest; the manifest in force and its sha256.

    A manifest that another committer of this same run put first counts when it says the same of the data, so that
    two of them never disagree on its bytes.
    """
    data = json_bytes(content)
    there = _stored(folder)
    if there is not None and all(there[1].get(k) == v for k, v in json.loads(data).items() if k in _ESSENCE):
        data, content = there
    files = attachments(content) if callable(attachments) else attachments
    for key, file in files.items():
        folder.put(key, file)
    if there is None or there[0] != data:
        folder.put(keys.MANIFEST, data)
    return content, hashlib.sha256(data).hexdigest()


def _stored(folder: Store) -> tuple[bytes, dict[str, Any]] | None:
    """The manifest that an earlier try or another committer left."""
    try:
        return folder.get(keys.MANIFEST), manifest.read(folder)
    except (MissingObject, CorruptShard):
        return None


def _as_version(content: Mapping[str, Any], folder: Store, pointer: Pointer) -> Version:
    current = pointer.version == content["version"]
    digest = pointer.manifest_sha256 if current else hashlib.sha256(folder.get(keys.MANIFEST)).hexdigest()
    shards = len(content["shards"]) + sum(part["shards"] for part in content.get("parts", ()))
    return Version(
        name=content["version"], url=folder.where(), manifest_sha256=digest, rows=content["rows"],
        rows_per_class=dict(content["rows_per_class"]), shards=shards, report_url=folder.where(keys.REPORT),
    )


def _software() -> dict[str, str]:
    from pipeline.documents.gathering import software

    return software()


# showing


def show(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is published at `url`, a dataset's or one version's.

    Returns:
        {url, dataset, latest, versions: […]}, the latest version first. Each version: version, created, rows,
        rows_per_class, bytes, shards, format, scores, verdict, source, generator, recommended_mix, rejects, run_id,
        seed, continues ({version, rows, shards} or None), and `changes` since the version before: {rows_per_class:
        {class: more}, scores: {name: difference}}.

    Raises:
        MissingObject: nothing is published there.
    """
    dataset, name = manifest.locate(url, storage_options)
    found = list(manifest.history(dataset)) if name is None else [manifest.read(dataset.child(keys.version(name)))]
    if not found:
        raise MissingObject(f"nothing is published at {dataset.where()}: give <publish.url>/<name>, or a version's URL "
                            "below it")
    described = [_described(content, before) for content, before in zip(found, [*found[1:], None])]
    latest = found[0]["version"] if name is None else None
    return {"url": dataset.where(), "dataset": found[0]["dataset"], "latest": latest, "versions": described}


def _described(content: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    shown = {name: content.get(name) for name in _SHOWN}
    shown["shards"] = len(content["shards"]) + sum(part["shards"] for part in content.get("parts", ()))
    shown["changes"] = None if before is None else {
        "rows_per_class": _differences(content["rows_per_class"], before["rows_per_class"]),
        "scores": _differences(content.get("scores") or {}, before.get("scores") or {}),
    }
    return shown


def _differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, float]:
    both = {name: (new.get(name) or 0) - (old.get(name) or 0) for name in {**old, **new}}
    return {name: round(value, 6) for name, value in both.items() if value}
