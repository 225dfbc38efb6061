"""Gathering what the report shows from a run's folder; `pipeline.documents.report` turns it into the page."""

import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from pipeline import keys
from pipeline.config import Config
from pipeline.documents.lift_section import Sieved, sieve_of
from pipeline.documents.report import ReportInputs, render_report
from pipeline.errors import MissingObject
from pipeline.filtering import Filter, load_filter, put_reference
from pipeline.mint import load_gan
from pipeline.records import Checkpoint, Receipt, Scorecard, Snapshot, Verdict
from pipeline.runs import SOFTWARE_VERSION, code_digest
from pipeline.seeds import row_seeds
from pipeline.store import Store

COLUMNS = 12
MAX_PROGRESS_GRIDS = 6
SIEVED_CLASSES, SIEVED_DRAWS = 6, 64                 # that the filter's work is shown on


def make_report(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, verdict: Verdict,
    rows_to_make: Mapping[str, int], run: Store, run_id: str, *,
    version: str | None = None, created: str = "", receipts: Sequence[Receipt] = (), timings: Mapping[str, float] | None = None,
) -> bytes:
    """The report of a run as one HTML file (UTF-8)."""
    from pipeline.training import load_metrics

    real, fake = real_beside_generated(config, snapshot, checkpoint, run)
    inputs = ReportInputs(
        config=config, snapshot=snapshot, checkpoint=checkpoint, scorecard=scorecard, verdict=verdict, plan=dict(rows_to_make),
        run_id=run_id, version=version, created=created or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        metrics=load_metrics(run), real_grid=real, fake_grid=fake, progress_grids=_progress_grids(run),
        nearest_pairs=_optional(run, scorecard.nearest_pairs_key), timings=dict(timings or {}), software=software(),
        rejects=total_rejects(receipts), sieved=sieved(config, snapshot, checkpoint, scorecard, run),
    )
    return render_report(inputs).encode()


def real_beside_generated(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Store
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per class, in the snapshot's order, up to `COLUMNS` training images and as many generated ones.

    Returns:
        (real, generated): lists of uint8 (n, C, H, W); n is 0 for a class without training images.
    """
    from pipeline.prepare import load_split

    train, draw = load_split(run, "train"), load_gan(run.get(checkpoint.key), truncation=config.sample.truncation)
    real, fake = [], []
    for label in range(len(snapshot.classes)):
        mine = train.images[np.flatnonzero(train.labels == label)[:COLUMNS]]
        real.append(mine)
        count = COLUMNS if len(mine) else 0
        empty = np.zeros((0, snapshot.channels, snapshot.resolution, snapshot.resolution), np.uint8)
        fake.append(draw(np.full(count, label, np.int64), row_seeds(config.seed, label, 0, count)) if count else empty)
    return real, fake


def sieved(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, run: Store) -> list[Sieved]:
    """What the filter does with the first draws of the scarcest classes, the very rows that sampling begins with.

    Empty where nothing filters.
    """
    wanted = Filter(**sieve_of(config, scorecard.lift))
    train = snapshot.rows_per_class["train"]
    scarcest = sorted((name for name in snapshot.classes if train.get(name)), key=lambda name: train[name])[:SIEVED_CLASSES]
    if not wanted.asked or not run.exists(keys.FILTER):
        return []
    put_reference(run, checkpoint, len(snapshot.classes))
    judge, draw = load_filter(run, wanted, checkpoint).judge, load_gan(run.get(checkpoint.key), truncation=config.sample.truncation)
    found = []
    for name in sorted(scarcest, key=snapshot.classes.index):
        label = snapshot.classes.index(name)
        labels = np.full(SIEVED_DRAWS, label, np.int64)
        images = draw(labels, row_seeds(config.seed, label, 0, SIEVED_DRAWS))
        reasons = np.array(judge(images, labels)[1])
        counts = {reason: int((reasons == reason).sum()) for reason in sorted(set(reasons.tolist()) - {""})}
        found.append(Sieved(name, SIEVED_DRAWS, images[reasons == ""], images[reasons != ""], counts))
    return found


def software() -> dict[str, str]:
    """Versions that decide a run's result."""
    versions = {"ganmill": SOFTWARE_VERSION, "code_digest": code_digest(), "python": platform.python_version()}
    for package in ("torch", "ray", "prefect", "pyarrow", "numpy"):
        versions[package] = metadata.version(package)
    return versions


def total_rejects(receipts: Sequence[Receipt]) -> dict[str, int]:
    """Redrawn rows by reason over all shards."""
    total: dict[str, int] = {}
    for receipt in receipts:
        for reason, count in receipt.rejects.items():
            total[reason] = total.get(reason, 0) + count
    return total


def _progress_grids(run: Store) -> list[tuple[float, bytes]]:
    """Sample grids on the way, evenly thinned, with the kimg that their names tell."""
    names = sorted(info.key for info in run.list(f"{keys.GRIDS}/"))
    if len(names) > MAX_PROGRESS_GRIDS:
        names = [names[round(i)] for i in np.linspace(0, len(names) - 1, MAX_PROGRESS_GRIDS)]
    return [(float(name.rsplit("kimg-", 1)[1].removesuffix(".png")), run.get(name)) for name in names]


def _optional(run: Store, key: str | None) -> bytes | None:
    if key is None:
        return None
    try:
        return run.get(key)
    except MissingObject:
        return None


def rows_to_make(plan: Any, classes: Sequence[str]) -> dict[str, int]:
    """Class name → rows over all shards of a plan."""
    rows = dict.fromkeys(classes, 0)
    for shard in plan:
        for part in shard.parts:
            rows[classes[part.label]] += part.count
    return rows
