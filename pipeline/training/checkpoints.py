"""What a training leaves in its run folder: checkpoints, of which the newest are kept and the best, and the log of its metrics."""

import json
from typing import Any

from pipeline import keys
from pipeline.errors import MissingObject
from pipeline.store import Store

KEEP_CHECKPOINTS = 2


def latest_meta(run: Store) -> dict[str, Any] | None:
    """The newest whole checkpoint's JSON, which is put after its weights."""
    found = names(run)
    return run.get_json(found[-1]) if found else None


def names(run: Store) -> list[str]:
    """Keys of all whole checkpoints' JSON, by the images that they have seen."""
    return sorted(info.key for info in run.list("checkpoints/") if info.key.endswith(".json"))


def best_and_lowest(run: Store) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The JSON of the checkpoint to publish and of the one with the lowest score on the val split, of equals the newest.

    Twenty images tell checkpoints apart by what these happen to be. So the newest is published of those that are worse by no more than a
    standard error of the difference, by a jackknife over the val images (the one-standard-error rule, Breiman 1984): it has seen more,
    and may hold more of the run's generators. Where none has a score, the newest of all, and None.
    """
    from gan.validation import standard_error  # brings torch, and most of Ray's processes need none

    every = [run.get_json(name) for name in names(run)]
    newest_first = [meta for meta in reversed(every) if meta.get("validation") is not None]
    if not newest_first:
        return (every[-1] if every else None), None
    lowest = min(newest_first, key=lambda meta: float(meta["validation"]))

    def as_good(meta: dict[str, Any]) -> bool:
        error = standard_error(meta.get("validation_without", ()), lowest.get("validation_without", ()))
        return bool(meta["validation"] - lowest["validation"] <= error)

    return next(filter(as_good, newest_first)), lowest


def choice(chosen: dict[str, Any], latest: dict[str, Any], lowest: dict[str, Any] | None) -> str:
    """A sentence on why this checkpoint; empty where there was nothing to choose by."""
    if lowest is None:
        return ""
    last = "the last checkpoint is kept" if chosen["kimg"] == latest["kimg"] else "not the last checkpoint is kept"
    after = f"after {lowest['kimg']:,.1f} thousand images"
    if chosen["kimg"] == lowest["kimg"]:
        end = f", {latest['validation']:.4f} at the end" if chosen["kimg"] != latest["kimg"] and "validation" in latest else ""
        return f"{last}: lowest distance to the val images ({lowest['validation']:.4f}) {after}{end}"
    which = "" if chosen["kimg"] == latest["kimg"] else f" of {chosen['kimg']:,.1f} thousand images"
    return (f"{last}: the distance{which} to the val images ({chosen['validation']:.4f}) is within a standard error of the lowest, "
            f"{lowest['validation']:.4f} {after}")


def prune(run: Store) -> None:
    """Keeps the newest checkpoints, the one with the lowest score and the best."""
    found = names(run)
    if len(found) <= KEEP_CHECKPOINTS:
        return
    kept = {meta["key"].removesuffix(".safetensors") + ".json" for meta in best_and_lowest(run) if meta is not None}
    for name in found[:-KEEP_CHECKPOINTS]:
        if name not in kept:
            remove(run, name)


def remove(run: Store, name: str) -> None:
    """A checkpoint by its JSON's key, which goes first, so that none points at missing weights."""
    run.delete(name)
    run.delete(name.removesuffix(".json") + ".safetensors")


# ---- metrics ----


def put_metrics(run: Store, metrics: list[dict[str, Any]]) -> None:
    if metrics:
        run.put(keys.METRICS, "".join(json.dumps(m) + "\n" for m in metrics).encode())


def load_metrics(run: Store) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, oldest first; empty when nothing was logged."""
    try:
        return [json.loads(line) for line in run.get(keys.METRICS).decode().splitlines()]
    except MissingObject:
        return []


def earlier_metrics(run: Store, shared: Store) -> list[dict[str, Any]]:
    """Metrics up to the checkpoint from which this training continues."""
    meta = latest_meta(shared)
    return [m for m in load_metrics(run) if meta is not None and m.get("kimg", 0.0) <= meta["kimg"]]
