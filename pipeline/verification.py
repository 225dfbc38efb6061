"""Does a published version still hold what its manifest says?"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline import keys, manifest
from pipeline.errors import CorruptShard, MissingObject
from pipeline.seeds import uids
from pipeline.shards.reading import rows_of
from pipeline.store import Store

READERS = 8


def verify(
    url: str, deep: bool = False, orphans: bool = False, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Checks a version against its manifest: sizes by one listing, then every object's sha256.

    Args:
        url: a dataset's (its latest version is checked) or a version's.
        deep: decode every row too: labels, uids, images.
        orphans: list what no published version refers to (`orphans`, keys in the dataset's folder) and what belongs to
            versions in the making (`unpublished`); nothing is removed.

    Returns:
        {version, rows, rows_per_class, shards, bytes, deep, orphans?, unpublished?}.

    Raises:
        CorruptShard: the first fault, by name.
        MissingObject: nothing is published there.
    """
    dataset, name = manifest.locate(url, storage_options)
    folder, content = opened(dataset, name)
    entries = list(manifest.shards(content, folder))
    _check_totals(content, entries, folder)
    _check_sizes(content, entries, folder)
    objects = [*entries, *([content["metadata"]] if "metadata" in content else [])]
    seen: set[str] = set()
    with ThreadPoolExecutor(READERS) as threads:
        try:
            for found in threads.map(lambda entry: _check_object(entry, content, folder, deep), objects):
                if seen & set(found):
                    raise CorruptShard(f"row {sorted(seen & set(found))[0]} is in {folder.where()} twice")
                seen.update(found)
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    if deep:
        _check_rows(content, seen, {entry["key"] for entry in entries}, folder)
    summary = {"version": content["version"], "rows": content["rows"], "rows_per_class": content["rows_per_class"],
               "shards": len(entries), "bytes": content["bytes"], "deep": deep}
    return {**summary, **unreferenced(dataset)} if orphans else summary


def opened(dataset: Store, name: str | None) -> tuple[Store, dict[str, Any]]:
    """The folder and manifest of a version, the latest if `name` is None.

    Raises:
        MissingObject: nothing is published there.
        CorruptShard: the pointer leads nowhere, or to another manifest than it says.
    """
    if name is not None:
        folder = dataset.child(keys.version(name))
        return folder, manifest.read(folder)
    pointer, _ = manifest.latest(dataset)
    if pointer is None:
        raise MissingObject(f"nothing is published at {dataset.where()}: give <publish.url>/<name>, or a version's URL "
                            "below it")
    folder = dataset.child(keys.version(pointer.version))
    try:
        return folder, manifest.read(folder, pointer.manifest_sha256)
    except MissingObject:
        where = dataset.where(keys.LATEST)
        raise CorruptShard(f"{where} points to {pointer.version}, whose manifest is missing") from None


def _check_totals(content: Mapping[str, Any], entries: list[dict[str, Any]], folder: Store) -> None:
    rows: Counter[str] = Counter()
    for entry in entries:
        rows.update(entry["rows_per_class"])
        if sum(entry["rows_per_class"].values()) != entry["rows"]:
            raise CorruptShard(f"{folder.where(keys.MANIFEST)}: rows of {entry['key']} don't add up")
    asked = {name: count for name, count in content["rows_per_class"].items() if count}
    if dict(rows) != asked or content["rows"] != rows.total():
        raise CorruptShard(f"{folder.where(keys.MANIFEST)}: the shards' rows don't add up to the totals")
    if sum(entry["bytes"] for entry in entries) != content["bytes"]:
        raise CorruptShard(f"{folder.where(keys.MANIFEST)}: the shards' bytes don't add up to the total")
    if len({entry["key"] for entry in entries}) != len(entries):
        raise CorruptShard(f"{folder.where(keys.MANIFEST)} lists a shard twice")


def _check_sizes(content: Mapping[str, Any], entries: list[dict[str, Any]], folder: Store) -> None:
    sizes = {info.key: info.size for info in folder.list()}
    for entry in [*entries, *([content["metadata"]] if "metadata" in content else [])]:
        if entry["key"] not in sizes:
            raise CorruptShard(f"{folder.where(entry['key'])} is missing")
        if sizes[entry["key"]] != entry["bytes"]:
            raise CorruptShard(f"{folder.where(entry['key'])} has {sizes[entry['key']]} bytes, the manifest says "
                               f"{entry['bytes']}")


def _check_object(entry: Mapping[str, Any], content: Mapping[str, Any], folder: Store, deep: bool) -> list[str]:
    """Checks one object; the uids of its rows when `deep` (for `png` they are taken from the metadata)."""
    where = folder.where(entry["key"])
    try:
        data = folder.get(entry["key"])
    except MissingObject:
        raise CorruptShard(f"{where} is missing") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise CorruptShard(f"{where} has sha256 {digest[:12]}…, the manifest says {entry['sha256'][:12]}…")
    if not deep:
        return []
    if content["format"] == "png" and entry["key"] != keys.METADATA:
        _check_image(data, where)
        return []
    return _check_content(data, entry, content, where)


def _check_content(data: bytes, entry: Mapping[str, Any], content: Mapping[str, Any], where: str) -> list[str]:
    classes, rows, found = content["classes"], Counter[str](), []
    try:
        for label, uid, image in rows_of(content["format"], data):
            rows[classes[label]] += 1
            found.append(uid)
            if image is not None:
                _check_image(image, f"{where}: row {uid}")
    except (ValueError, KeyError, TypeError, IndexError, OSError) as e:
        raise CorruptShard(f"{where} can't be read as {content['format']}: {e}") from e
    expected = entry.get("rows_per_class") or content["rows_per_class"]
    if dict(rows) != {name: count for name, count in expected.items() if count}:
        raise CorruptShard(f"{where} holds other rows per class than the manifest says: {dict(rows)}")
    return found


def _check_image(data: bytes, where: str) -> None:
    import cv2
    import numpy as np

    if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        raise CorruptShard(f"{where} is no image that can be decoded")


def _check_rows(content: Mapping[str, Any], seen: set[str], listed: set[str], folder: Store) -> None:
    """Every row that the seed asks for, and no other: uids follow from seed, class and number."""
    for label, name in enumerate(content["classes"]):
        for uid in uids(content["seed"], label, 0, content["rows_per_class"].get(name, 0)):
            if uid not in seen or (content["format"] == "png" and keys.image(name, uid) not in listed):
                raise CorruptShard(f"row {uid} of class {name!r} is not in {folder.where()}")


def unreferenced(dataset: Store) -> dict[str, list[str]]:
    """What lies under `versions/` and no manifest of a published version names.

    Returns:
        orphans: keys of objects that nothing can refer to any more.
        unpublished: versions that may still be in the making, or whose manifest is there though no chain leads to it
            (a manifest between was lost): their objects are no orphans.
    """
    referenced: set[str] = set()
    published: set[str] = set()
    for content in manifest.history(dataset):
        folder = keys.version(content["version"])
        published.add(content["version"])
        named = [keys.MANIFEST, keys.CARD, keys.CROISSANT, keys.REPORT, keys.LIFT_ROWS_PUBLISHED, keys.METADATA,
                 *(part["key"] for part in content.get("parts", ())),
                 *(entry["key"] for entry in manifest.shards(content, dataset.child(folder)))]
        referenced.update(f"{folder}/{key}" for key in named)
    listed = [info.key for info in dataset.list(keys.VERSIONS)]
    latest = max(published, default="")
    kept = {key.split("/")[1] for key in listed if key.split("/")[1] > latest or key.endswith(f"/{keys.MANIFEST}")}
    unpublished = kept - published
    orphans = [key for key in listed if key not in referenced and key.split("/")[1] not in unpublished]
    return {"orphans": orphans, "unpublished": sorted(unpublished)}
