"""Going on from another run: what it finished before sampling is taken over when nothing that decides it has changed.

So more of a class, another format, other thresholds or more seeds of the lift trial cost no second training, be the other run published
or refused. Each stage checks what it finds in the run's folder by fingerprint, as after an interruption; here is only decided what to
look for, and it is copied within the store.
"""

from concurrent.futures import ThreadPoolExecutor

from pipeline import keys, manifest
from pipeline.config import Config
from pipeline.errors import CorruptShard, MissingObject
from pipeline.runs import GENERATOR_SECTIONS, Run
from pipeline.store import Store

AT_ONCE = 16                 # runs that are looked at


def adopt(config: Config, run: Run) -> str | None:
    """Copies another run's prepared data, generator and evaluation into this run's folder; that run's id.

    The published one's, else any other's. None when there is nothing to take over: this run has a generator already, or all others were
    made from another source, seed, recipe or code. What marks a stage as finished is copied last, so an interruption does no harm.

    Raises:
        StoreError: the store can't be read or written.
    """
    if run.folder.exists(keys.TRAINED):
        return None
    published, wanted = _published(run), config.digest(*GENERATOR_SECTIONS)
    other = published if published is not None and _serves(run, published, wanted) else _another(run, wanted)
    if other is None:
        return None
    try:
        trained = run.dataset.get_json(f"{keys.run(other)}/{keys.TRAINED}")
        _copy(run.dataset, keys.run(other), keys.run(run.run_id), str(trained["key"]))
    except MissingObject:                            # cleared away, by hand: made anew
        return None
    return other


def _another(run: Run, generator: str) -> str | None:
    """The first run by name that serves; one request or two for each that there is, which a training outweighs."""
    names = run.dataset.folders(keys.RUNS)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return next((name for name, serves in zip(names, pool.map(lambda name: _serves(run, name, generator), names)) if serves), None)


def _serves(run: Run, name: str, generator: str) -> bool:
    """Is that another run, whose generator is trained, and by this config, source and code?"""
    if name == run.run_id:
        return False
    try:
        facts = run.dataset.get_json(f"{keys.run(name)}/{keys.CONFIG}")
    except MissingObject:
        return False
    same = (facts.get("generator_config_digest") == generator and facts.get("source_fingerprint") == run.source_fingerprint
            and facts.get("code_digest") == run.code_digest)
    return same and run.dataset.exists(f"{keys.run(name)}/{keys.TRAINED}")


def _published(run: Run) -> str | None:
    """Which run made the latest version."""
    pointer, _ = manifest.latest(run.dataset)
    if pointer is None:
        return None
    try:
        return str(manifest.read(run.dataset.child(keys.version(pointer.version)))["run_id"])
    except (MissingObject, CorruptShard):
        return None


def _copy(dataset: Store, other: str, own: str, checkpoint: str) -> None:
    stem = checkpoint.rpartition(".")[0]
    run = dataset.child(other)
    parts = [info.key for folder in (keys.PREPARED, keys.GRIDS, keys.CHECKPOINTS, keys.EVALUATION) for info in run.list(folder)]
    wanted = [key for key in parts if not key.startswith(f"{keys.CHECKPOINTS}/") or key.startswith(f"{stem}.")]
    records = [key for key in (keys.METRICS, keys.QUARANTINE, keys.SNAPSHOT, keys.SCORECARD) if run.exists(key)]
    dataset.copy_all([(f"{other}/{key}", f"{own}/{key}") for key in wanted])
    for key in (*records, keys.TRAINED):
        dataset.copy(f"{other}/{key}", f"{own}/{key}")
