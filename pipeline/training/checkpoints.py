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


def best_meta(run: Store) -> dict[str, Any] | None:
    """The JSON of the checkpoint with the lowest score on the val split, of equals the newest; the newest where none has one."""
    metas = [run.get_json(name) for name in names(run)]
    scored = [meta for meta in metas if meta.get("validation") is not None]
    if not scored:
        return metas[-1] if metas else None
    best: dict[str, Any] = min(reversed(scored), key=lambda meta: float(meta["validation"]))
    return best


def choice(chosen: dict[str, Any], latest: dict[str, Any]) -> str:
    """A sentence on why this checkpoint; empty where there was nothing to choose by."""
    if chosen.get("validation") is None:
        return ""
    kept = f"lowest distance to the val images ({chosen['validation']:.4f}) after {chosen['kimg']:,.1f} thousand images"
    if chosen["kimg"] == latest["kimg"]:
        return f"the last checkpoint is kept: {kept}"
    return f"not the last checkpoint is kept: {kept}, {latest.get('validation', float('nan')):.4f} at the end"


def prune(run: Store) -> None:
    """Keeps the newest checkpoints and the best."""
    found = names(run)
    if len(found) <= KEEP_CHECKPOINTS:
        return
    best = best_meta(run)
    for name in found[:-KEEP_CHECKPOINTS]:
        if best is None or name != best["key"].removesuffix(".safetensors") + ".json":
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
