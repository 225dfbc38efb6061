"""Making one shard: draw, filter, encode, put, receipt last.

What a shard holds follows from (run seed, spec, checkpoint) alone: not from who makes it, when, or how often. Nothing
here knows of Ray; `fanout` calls it from actors or, for stores that live in this process, from threads.
"""

import dataclasses
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline import keys, seeds
from pipeline.errors import CorruptShard, MissingObject, SamplingFailed
from pipeline.records import Receipt, ShardSpec
from pipeline.shards import EncodedShard, ShardRows, encode
from pipeline.store import Store, compact_json

MAX_DRAWS = 50                                       # of one row, before its class is given up

Generate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Labels int64 (n,), latent seeds int64 (n,) → images uint8 (n, C, H, W); row i follows from its label and seed."""


class RowFilter(Protocol):
    """Which drawn rows are good enough. Must be pure and safe to call from several threads."""

    def judge(self, images: np.ndarray, labels: np.ndarray) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """Scores to record, float32 (n,) by column name, and per row the reason to reject it ("" = keep)."""


@dataclass(frozen=True)
class MintJob:
    """What a worker must know to make any shard of a version; can be pickled."""

    seed: int
    classes: tuple[str, ...]
    format: str
    checkpoint_key: str                              # in `run`
    checkpoint_sha256: str
    run: Store
    version: Store                                   # the version's folder
    load: Callable[[bytes], Generate]                # checkpoint → generator
    load_filter: Callable[[Store], RowFilter] | None = None   # run folder → filter
    kept: "KeptShards | None" = None


@dataclass(frozen=True)
class KeptShards:
    """The first shards of a version that continues another: they lie in that other one's folder already."""

    count: int
    dataset: Store
    version: str                                     # folder of the other version …
    run: str                                         # … and of the run that made it, in the dataset's folder
    into: str                                        # folder of the version to be


class Mint:
    """Makes shards. Loads the generator at the first call; may be called from several threads.

    Args:
        drawing: how many shards may be drawn at the same time; those that are being encoded or put don't count.
    """

    def __init__(self, job: MintJob, drawing: int = 1):
        self._job = job
        self._turns = threading.Semaphore(drawing)
        self._loading = threading.Lock()
        self._generate: Generate | None = None
        self._filter: RowFilter | None = None

    def make(self, spec: ShardSpec) -> Receipt:
        """Makes a shard and puts it, then its receipt.

        Returns:
            The receipt that lies in the store: another worker's, if that was faster.

        Raises:
            SamplingFailed: the filter rejects nearly all rows of a class.
            CorruptShard: the checkpoint in the run folder is not the one that was planned with.
            StoreError: a put failed.
        """
        started = time.monotonic()
        kept = self._job.kept
        taken = take_over(spec, kept, self._job) if kept is not None and spec.index < kept.count else None
        if taken is not None:
            return self._stored(taken)
        self._load()
        with self._turns:
            rows, rejects = self._draw(spec)
        encoded = encode(self._job.format, rows, spec.index, spec.of)
        stored = self._put(encoded)
        if encoded.metadata:
            self._job.run.put(keys.metadata_part(spec.index), encoded.metadata)
        return self._stored(self._receipt(spec, rows, encoded, stored, rejects, time.monotonic() - started))

    def _stored(self, receipt: Receipt) -> Receipt:
        """Puts the receipt; the one that lies there then."""
        if self._job.run.put_if_absent(keys.receipt(receipt.index), compact_json(vars(receipt))):
            return receipt
        return Receipt.from_json(self._job.run.get_json(keys.receipt(receipt.index)))

    def _receipt(
        self, spec: ShardSpec, rows: ShardRows, encoded: EncodedShard, stored: list[dict[str, Any]],
        rejects: dict[str, int], seconds: float,
    ) -> Receipt:
        key, sha256 = stored[0]["key"], stored[0]["sha256"]
        files: tuple[dict[str, Any], ...] = ()
        if encoded.metadata:
            key, sha256 = keys.metadata_part(spec.index), hashlib.sha256(encoded.metadata).hexdigest()
            files = tuple({**facts, "label": int(label)} for facts, label in zip(stored, rows.labels))
        return Receipt(
            index=spec.index, key=key, rows=len(rows),
            rows_per_class={self._job.classes[part.label]: part.count for part in spec.parts},
            bytes=sum(facts["bytes"] for facts in stored), sha256=sha256, seed=self._job.seed, rejects=rejects,
            files=files, seconds=round(seconds, 3),
        )

    def _load(self) -> None:
        with self._loading:
            if self._generate is not None:
                return
            data = self._job.run.get(self._job.checkpoint_key)
            digest = hashlib.sha256(data).hexdigest()
            if digest != self._job.checkpoint_sha256:
                raise CorruptShard(
                    f"{self._job.run.where(self._job.checkpoint_key)} has sha256 {digest[:12]}…, but "
                    f"{self._job.checkpoint_sha256[:12]}… was trained; train again under another --run-id"
                )
            if self._job.load_filter is not None:
                self._filter = self._job.load_filter(self._job.run)
            self._generate = self._job.load(data)

    def _draw(self, spec: ShardSpec) -> tuple[ShardRows, dict[str, int]]:
        """The rows of a shard, mixed, and how many draws were rejected by reason."""
        job = self._job
        labels = np.concatenate([np.full(p.count, p.label, dtype=np.int64) for p in spec.parts])
        index = np.concatenate([np.arange(p.first, p.first + p.count, dtype=np.int64) for p in spec.parts])
        uids = [uid for p in spec.parts for uid in seeds.uids(job.seed, p.label, p.first, p.count)]
        images, latents, scores, rejects = self._accepted(labels, index)
        order = seeds.order(job.seed, spec.index, len(labels))
        rows = ShardRows(
            images=images[order], labels=labels[order], uids=[uids[i] for i in order], seeds=latents[order],
            classes=job.classes, scores={k: v[order] for k, v in scores.items()}, generator=job.checkpoint_sha256,
        )
        return rows, rejects

    def _accepted(
        self, labels: np.ndarray, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], dict[str, int]]:
        """Images, seeds and scores of rows that pass the filter; a rejected row is drawn again from its next seed."""
        assert self._generate is not None
        latents = _latent_seeds(self._job.seed, labels, index, 0)
        images = self._generate(labels, latents)
        if self._filter is None:
            return images, latents, {}, {}
        rejects: Counter[str] = Counter()
        by_class: Counter[tuple[int, str]] = Counter()
        draws, again = Counter(labels.tolist()), np.arange(len(labels))
        scores, reasons = _judged(self._filter, images, labels)
        for attempt in range(1, MAX_DRAWS + 1):
            rejects.update(reason for reason in reasons if reason)
            by_class.update((label, reason) for label, reason in zip(labels[again].tolist(), reasons) if reason)
            again = again[[bool(reason) for reason in reasons]]
            if not len(again):
                return images, latents, scores, dict(sorted(rejects.items()))
            if attempt == MAX_DRAWS:
                break
            latents[again] = _latent_seeds(self._job.seed, labels[again], index[again], attempt)
            images[again] = self._generate(labels[again], latents[again])
            draws.update(labels[again].tolist())
            new, reasons = _judged(self._filter, images[again], labels[again])
            for name, values in new.items():
                scores[name][again] = values
        raise SamplingFailed(self._given_up(labels, again, draws, by_class))

    def _given_up(self, labels: np.ndarray, left: np.ndarray, draws: Counter[int], rejects: Counter[tuple[int, str]]) -> str:
        worst, missing = Counter(labels[left].tolist()).most_common(1)[0]
        kept = int((labels == worst).sum()) - missing
        reasons = ", ".join(f"{reason} {count}" for (label, reason), count in rejects.most_common() if label == worst)
        return (f"class {self._job.classes[worst]!r}: the filter kept {kept} of {draws[worst]} draws "
                f"({100 * kept / draws[worst]:.1f} %), {missing} rows failed {MAX_DRAWS} times (rejected by: {reasons}); lower "
                "sample.filter or train longer")

    def _put(self, encoded: EncodedShard) -> list[dict[str, Any]]:
        """Puts all objects; key, bytes and sha256 of what lies in the store then."""
        if not encoded.metadata:
            only = encoded.objects[0]
            self._job.version.put(only.key, only.data)
            return [_facts(only.key, only.data)]
        # A file's key does not hold its hash, so what an earlier try left there, maybe on other hardware, counts.
        there = self._job.version.put_all_if_absent([(file.key, file.data) for file in encoded.objects])
        return [_facts(file.key, data) for file, data in zip(encoded.objects, there)]


def take_over(spec: ShardSpec, kept: KeptShards, job: MintJob) -> Receipt | None:
    """Copies a finished shard from the version that this one continues, within the store; its receipt.

    None when the other version or its receipt is gone meanwhile or doesn't fit: then the shard is made anew, and holds
    the same rows.
    """
    try:
        old = Receipt.from_json(json.loads(kept.dataset.get(f"{kept.run}/{keys.receipt(spec.index)}")))
        if not old.fits(spec, job.seed, job.classes):
            return None
        key = old.key if old.files else keys.kept_shard(job.format, spec.index, spec.of, old.sha256)
        objects = [(entry["key"], entry["key"]) for entry in old.files] or [(old.key, key)]
        kept.dataset.copy_all([(f"{kept.version}/{a}", f"{kept.into}/{b}") for a, b in objects])
        if old.files:
            job.run.put(old.key, kept.dataset.get(f"{kept.run}/{old.key}"))
    except (MissingObject, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dataclasses.replace(old, key=key)


def load_gan(data: bytes, device: str = "cpu", truncation: float = 1.0) -> Generate:
    """The generator in a checkpoint of ours; `truncation`: see `gan.sampling.generate`."""
    import torch

    from gan.checkpoint import load_generator
    from gan.sampling import generate

    net = load_generator(data).net.to(device)

    def images(labels: np.ndarray, latents: np.ndarray) -> np.ndarray:
        result: np.ndarray = generate(net, torch.from_numpy(labels), latents, truncation=truncation).numpy()
        return result

    return images


def _judged(row_filter: RowFilter, images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    scores, reasons = row_filter.judge(images, labels)
    return {name: np.array(values, dtype=np.float32) for name, values in scores.items()}, list(reasons)


def _latent_seeds(run_seed: int, labels: np.ndarray, index: np.ndarray, attempt: int) -> np.ndarray:
    found = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = labels == label
        found[mine] = seeds.row_seeds_at(run_seed, int(label), index[mine], np.full(int(mine.sum()), attempt))
    return found


def _facts(key: str, data: bytes) -> dict[str, Any]:
    return {"key": key, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
