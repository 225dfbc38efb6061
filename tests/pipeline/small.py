"""A small run with a generator that paints by arithmetic: no training, the way from plan to version in a blink."""

import contextlib
import dataclasses
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import keys
from pipeline.config import Config, parse_config
from pipeline.fanout import sample
from pipeline.mint import Generate, RowFilter
from pipeline.plan import Plan, PlanRecord, open_plan
from pipeline.progress import NullProgress
from pipeline.publication import commit
from pipeline.records import Checkpoint, Receipt, Scorecard, Snapshot, Verdict, Version
from pipeline.store import Store

CLASSES = ("cat", "größe/2", "empty", "dog")
COUNTS = {"cat": 3, "größe/2": 20, "empty": 0, "dog": 11}
WEIGHTS = b"weights of a generator that paints by arithmetic"
SIZE, CHANNELS = 8, 3


class Notes(NullProgress):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Kept."""
        self.notes.append(message)



def paint(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """uint8 (n, 3, 8, 8): a pattern that follows from each row's seed, with the label in the first pixel."""
    place = np.arange(CHANNELS * SIZE * SIZE, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    noise = (seeds.astype(np.uint64)[:, None] + place) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(56)
    images = noise.astype(np.uint8).reshape(-1, CHANNELS, SIZE, SIZE)
    images[:, :, 0, 0] = labels[:, None]
    return images


def load_painter(data: bytes) -> Generate:
    """Stands for `pipeline.mint.load_gan`."""
    assert data == WEIGHTS
    return paint


def load_deadly(data: bytes, folder: str, label: int, deaths: int) -> Generate:
    """Kills its own process at a shard that ends in `label`, the first `deaths` times; `folder` counts them."""
    def generate(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        if labels[-1] == label and seeds[-1] % 3 == 0:
            for death in range(deaths):
                with contextlib.suppress(FileExistsError):
                    Path(f"{folder}/{seeds[-1]}-{death}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
        return paint(labels, seeds)

    return generate


def load_slow(data: bytes) -> Generate:
    """Half a second a shard."""
    def generate(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        time.sleep(0.5)
        return paint(labels, seeds)

    return generate


class EveryThird:
    """Keeps the rows whose brightness has remainder 0 by 3, of class 0 only; all of the others."""

    def judge(self, images: np.ndarray, labels: np.ndarray) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """As `RowFilter.judge`."""
        brightness = images.reshape(len(images), -1).sum(axis=1, dtype=np.int64)
        keep = (labels != 0) | (brightness % 3 == 0)
        return {"confidence": brightness / 1e5}, ["" if k else "confidence" for k in keep]


def load_every_third(run: Store) -> RowFilter:
    """Stands for the loader of the real filter."""
    return EveryThird()


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for a Ray of the test's own, whose path is short enough for its sockets; gone with what Ray left there."""
    return tempfile.TemporaryDirectory(prefix="gmt-", dir="/tmp", ignore_cleanup_errors=True)


def config(url: str, options: Mapping[str, Any] | None = None, name: str = "small", **sample_section: Any) -> Config:
    """A config whose sampling runs in this process."""
    return parse_config({
        "name": name, "seed": 7, "source": {"format": "digits"}, "cluster": {"address": "inline"},
        "sample": {"target": "balance", "rows_per_shard": 7, "workers": 1, **sample_section},
        "publish": {"url": url, "storage_options": dict(options or {})},
    })


SNAPSHOT = Snapshot(
    fingerprint="5" * 64, source_fingerprint="4" * 64, source_format="digits", source_url=None, classes=CLASSES,
    resolution=SIZE, channels=CHANNELS, official_test=False,
    rows_per_class={"train": COUNTS, "val": dict.fromkeys(CLASSES, 1), "test": dict.fromkeys(CLASSES, 1)},
)
CHECKPOINT = Checkpoint(
    key="checkpoints/x.safetensors", sha256=hashlib.sha256(WEIGHTS).hexdigest(), model="dcgan", preset="by hand",
    net={}, trained_kimg=1.5, images_per_s=1.0, seconds=1.0, config_digest="c" * 16, train_fingerprint="5" * 64,
)
SCORECARD = Scorecard(
    samples=10, features="domain", fd=12.5, fd_floor=1.0, matched={"fd": 12.5}, fd_reference="val", precision=0.5, recall=0.5, density=0.5,
    coverage=0.75, coverage_per_class={}, agreement=0.9, agreement_per_class={}, judge_accuracy=0.99,
    diversity_per_class={}, memorised=float("nan"),
)
PASSED = Verdict(passed=True)
SOFTWARE = {"ganmill": "test", "code_digest": "d"}


@dataclasses.dataclass(frozen=True)
class SmallRun:
    """A run whose generator is trained and whose images passed; what is left is plan, sample, publish."""

    config: Config
    run_id: str
    dataset: Store

    @property
    def folder(self) -> Store:
        """The run's folder."""
        return self.dataset.child(keys.run(self.run_id))

    def plan(self, checkpoint: Checkpoint = CHECKPOINT) -> tuple[Plan, PlanRecord]:
        """As the stage of that name."""
        if not self.folder.exists(checkpoint.key):
            self.folder.put(checkpoint.key, WEIGHTS)
        return open_plan(self.config, SNAPSHOT, checkpoint, self.folder, self.dataset)

    def sample(self, **changes: Any) -> list[Receipt]:
        """As the stage of that name."""
        plan, record = self.plan()
        return list(sample(self.config, SNAPSHOT, CHECKPOINT, plan, self.folder, self.dataset, record.version,
                           NullProgress(), **{"load": load_painter, **changes}))

    def publish(
        self, receipts: list[Receipt], verdict: Verdict = PASSED, planned: tuple[Plan, PlanRecord] | None = None
    ) -> Version:
        """As the stage of that name."""
        plan, record = planned or self.plan()
        return commit(self.config, SNAPSHOT, CHECKPOINT, SCORECARD, verdict, plan, receipts, self.dataset, self.run_id,
                      record.version, attachments, software=SOFTWARE)

    def finish(self, **changes: Any) -> Version:
        """Plan, sample, publish."""
        return self.publish(self.sample(**changes))


def attachments(manifest: dict[str, Any]) -> dict[str, bytes]:
    """Card and report that refer to the manifest."""
    return {keys.CARD: f"# {manifest['rows']} rows\n".encode(), keys.REPORT: b"<html>", keys.CROISSANT: b"{}"}


def small_run(url: str, run_id: str = "r1", options: Mapping[str, Any] | None = None, **section: Any) -> SmallRun:
    """A run under `url`; `section` goes into the config's `sample`."""
    settings = config(url, options, **section)
    return SmallRun(settings, run_id, Store(settings.dataset_url, options))


