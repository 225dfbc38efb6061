"""Runs as their folders tell them: which stage each reached, how far, when, and how it ended. Reads, never writes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline import keys
from pipeline.errors import MissingObject
from pipeline.records import Record
from pipeline.store import ObjectInfo, Store

# the object that says that a stage is finished, in the order of the walk
_FINISHED = (("prepare", keys.SNAPSHOT), ("train", keys.TRAINED), ("evaluate", keys.SCORECARD), ("gate", keys.VERDICT),
             ("plan", keys.PLAN))


@dataclass(frozen=True)
class RunStatus(Record):
    """A run, as far as its folder shows it."""

    run_id: str
    dataset: str                                     # URL
    state: str                                       # published | refused | unfinished
    stage: str                                       # the one it is in, or ended with
    progress: str                                    # within the stage, e.g. "120 of 200 kimg", or ""
    begun: str | None                                # UTC, ISO; None where the store keeps no times
    last_sign: str | None                            # when the newest object was written
    version: str | None
    reasons: tuple[str, ...]                         # the verdict's, on a refusal
    url: str                                         # the run's folder


def list_runs(dataset: Store) -> list[RunStatus]:
    """Every run of a dataset, the one with the newest sign of life first.

    Raises:
        MissingObject: there is no run.
    """
    by_run: dict[str, list[ObjectInfo]] = {}
    for info in dataset.list(keys.RUNS):
        run_id, _, key = info.key.removeprefix(f"{keys.RUNS}/").partition("/")
        by_run.setdefault(run_id, []).append(ObjectInfo(key, info.size, info.modified))
    if not by_run:
        raise MissingObject(f"{dataset.where()} has no run: give <publish.url>/<name>, or a config")
    published = _versions(dataset)
    found = [_status(dataset, run_id, objects, published) for run_id, objects in by_run.items()]
    return sorted(found, key=lambda s: (s.last_sign or "", s.run_id), reverse=True)


def read_run(dataset: Store, run_id: str) -> RunStatus:
    """One run.

    Raises:
        MissingObject: there is none of that id.
    """
    objects = dataset.child(keys.run(run_id)).list()
    if not objects:
        raise MissingObject(f"{dataset.where()} has no run {run_id}: `ganmill runs {dataset.where()}` lists them")
    return _status(dataset, run_id, objects, _versions(dataset))


def locate_run(url: str) -> tuple[Store, str] | None:
    """(the dataset's folder, the run's id) of a run folder's URL, None for any other."""
    base, found, run_id = url.rstrip("/").rpartition(f"/{keys.RUNS}/")
    return (Store(base), run_id) if found and run_id and "/" not in run_id else None


def _versions(dataset: Store) -> Mapping[str, str]:
    """Run id → version that it published, the latest versions only as far as the pointer leads back."""
    from pipeline import manifest

    return {content["run_id"]: content["version"] for content in reversed(list(manifest.history(dataset)))}


def _status(dataset: Store, run_id: str, objects: Iterable[ObjectInfo], published: Mapping[str, str]) -> RunStatus:
    folder = dataset.child(keys.run(run_id))
    times = {info.key: info.modified for info in objects}
    stamps = sorted(t for t in times.values() if t is not None)
    stage = next((name for name, key in _FINISHED if key not in times), "sample")
    version = published.get(run_id)
    reasons = _refusal(folder) if version is None and keys.VERDICT in times and keys.PLAN not in times else None
    state = "published" if version else "refused" if reasons is not None else "unfinished"
    if reasons is not None:
        stage = "gate"
    return RunStatus(
        run_id=run_id, dataset=dataset.where(), state=state, stage="publish" if version else stage,
        progress="" if state != "unfinished" else _progress(folder, stage, times), begun=_iso(times.get(keys.CONFIG)),
        last_sign=_iso(stamps[-1] if stamps else None), version=version, reasons=reasons or (), url=folder.where(),
    )


def _refusal(folder: Store) -> tuple[str, ...] | None:
    """The verdict's reasons if it refused, else None."""
    verdict = folder.get_json(keys.VERDICT)
    return None if verdict["passed"] or not verdict.get("enforced", True) else tuple(verdict["reasons"])


def _progress(folder: Store, stage: str, objects: Mapping[str, float | None]) -> str:
    try:
        if stage == "train" and keys.METRICS in objects:
            budget = folder.get_json(keys.CONFIG)["config"]["train"]["budget"]
            last = json.loads(folder.get(keys.METRICS).decode().splitlines()[-1])
            wanted = f" of {budget['kimg']:g}" if budget.get("kimg") else ""
            return f"{last.get('kimg', 0):,.1f}{wanted} kimg"
        if stage == "sample":
            made = sum(key.startswith(f"{keys.RECEIPTS}/") for key in objects)
            return f"{made:,} shards have their receipt"
    except (MissingObject, ValueError, KeyError, IndexError):
        return ""                                    # being written at this very moment
    return ""


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
