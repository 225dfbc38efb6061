"""Going on from the published run: what it finished before sampling is taken over when nothing that decides it has changed.

So more of a class, another format or other thresholds cost no second training. Each stage checks what it finds in the run's
folder by fingerprint, as after an interruption; here is only decided what to look for, and it is copied within the store.
"""

from typing import Any

from pipeline import keys, manifest
from pipeline.config import Config
from pipeline.errors import CorruptShard, MissingObject
from pipeline.runs import GENERATOR_SECTIONS, Run
from pipeline.store import Store


def adopt(config: Config, run: Run) -> str | None:
    """Copies the published run's prepared data, generator and evaluation into this run's folder; that run's id.

    None when there is nothing to take over: this run has a generator already, or the published one was made from another
    source, seed, recipe or code. What marks a stage as finished is copied last, so an interruption does no harm.

    Raises:
        StoreError: the store can't be read or written.
    """
    published = _latest(run)
    if published is None or run.folder.exists(keys.TRAINED):
        return None
    other = keys.run(published["run_id"])
    try:
        facts = run.dataset.get_json(f"{other}/{keys.CONFIG}")
        if facts.get("generator_config_digest") != config.digest(*GENERATOR_SECTIONS):
            return None
        trained = run.dataset.get_json(f"{other}/{keys.TRAINED}")
        _copy(run.dataset, other, keys.run(run.run_id), str(trained["key"]))
    except MissingObject:                            # cleared away, by hand: made anew
        return None
    return str(published["run_id"])


def _latest(run: Run) -> dict[str, Any] | None:
    """The manifest of another run's latest version, if it was made from this source by this code."""
    pointer, _ = manifest.latest(run.dataset)
    if pointer is None:
        return None
    try:
        content = manifest.read(run.dataset.child(keys.version(pointer.version)))
    except (MissingObject, CorruptShard):
        return None
    same = (content["source"].get("listing_fingerprint") == run.source_fingerprint
            and content["software"].get("code_digest") == run.code_digest and content["run_id"] != run.run_id)
    return content if same else None


def _copy(dataset: Store, other: str, own: str, checkpoint: str) -> None:
    stem = checkpoint.rpartition(".")[0]
    run = dataset.child(other)
    parts = [info.key for folder in (keys.PREPARED, keys.GRIDS, keys.CHECKPOINTS, keys.EVALUATION) for info in run.list(folder)]
    wanted = [key for key in parts if not key.startswith(f"{keys.CHECKPOINTS}/") or key.startswith(f"{stem}.")]
    records = [key for key in (keys.METRICS, keys.QUARANTINE, keys.SNAPSHOT, keys.SCORECARD) if run.exists(key)]
    dataset.copy_all([(f"{other}/{key}", f"{own}/{key}") for key in wanted])
    for key in (*records, keys.TRAINED):
        dataset.copy(f"{other}/{key}", f"{own}/{key}")
