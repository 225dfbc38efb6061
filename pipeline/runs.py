"""A run: its id, its folder, and whether there is anything to do at all.

The run id follows from source, config and code unless the caller gives one. So the next start after an interruption
finds what the last one finished, and a run that was refused says so again at once instead of training anew; under other
thresholds too, for the gate is no part of the id.
"""

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import MissingObject, RunMismatch
from pipeline.records import Record
from pipeline.redaction import public_config, public_url
from pipeline.store import Store

SOFTWARE_VERSION = "0.1.0"
GENERATOR_SECTIONS = ("seed", "source", "prepare", "train")   # of the config: what decides data and generator


@dataclass(frozen=True)
class Run:
    """Where one run reads and writes."""

    run_id: str
    dataset: Store                                   # <publish.url>/<name>
    folder: Store                                    # <publish.url>/<name>/runs/<run id>
    source_fingerprint: str
    code_digest: str
    lacking: str = ""                                # what the store can't do, a sentence for the user


@functools.cache
def code_digest() -> str:
    """sha256 (16 hex) over ganmill's own Python sources: what "unchanged code" means."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in ("gan", "pipeline", "flows"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def open_run(config: Config, run_id: str | None = None) -> Run:
    """Opens (or creates) the run's folder in the store.

    Raises:
        ConfigError: the run id has characters that a key can't have.
        RunMismatch: the id was used with another config; names the keys that differ.
        StoreError: the store can't be written.
    """
    run = describe_run(config, run_id)
    found = run.dataset.probe()                      # stores derived from it now know whether conditions hold
    run = dataclasses.replace(run, folder=run.dataset.child(keys.run(run.run_id)), lacking=found.note)
    facts = {
        "config": public_config(config), "source_fingerprint": run.source_fingerprint, "code_digest": run.code_digest,
        "config_digest": config.work_digest(), "generator_config_digest": config.digest(*GENERATOR_SECTIONS),
        "software": SOFTWARE_VERSION,
    }
    if not run.folder.exists(keys.CONFIG):
        run.folder.put_json(keys.CONFIG, facts)
        return run
    before = run.folder.get_json(keys.CONFIG)
    if before["config_digest"] != config.work_digest():
        differing = ", ".join(_differing(before["config"], facts["config"])) or "an environment value"
        raise RunMismatch(
            f"run {run.run_id} was begun with another config (differs in: {differing}); "
            "give another --run-id, or the config that it was begun with"
        )
    if before["source_fingerprint"] != run.source_fingerprint:
        raise RunMismatch(
            f"run {run.run_id} was begun on another state of the source {public_url(config.source.url) or config.source.format}; "
            "give another --run-id to start on the source as it is now"
        )
    if before["config"] != facts["config"]:          # the gate, or where things run
        run.folder.put_json(keys.CONFIG, facts)
    return run


def describe_run(config: Config, run_id: str | None = None) -> Run:
    """The run that `open_run` would open; reads the source's listing, writes nothing."""
    fingerprint = _source_fingerprint(config)
    code = code_digest()
    if run_id is None:
        run_id = hashlib.sha256("\0".join((config.work_digest(), fingerprint, code)).encode()).hexdigest()[:12]
    dataset = Store(config.dataset_url, config.publish.storage_options)
    return Run(run_id, dataset, dataset.child(keys.run(run_id)), fingerprint, code)


def _source_fingerprint(config: Config) -> str:
    if config.source.format == "gaussians":          # points are drawn, not read
        from pipeline.plane.source import fingerprint

        return fingerprint(config)
    from pipeline.sources import open_source

    return open_source(config.source, config.seed).fingerprint()


def published_version(config: Config, run: Run) -> dict[str, Any] | None:
    """The latest version's manifest if it was made from this very source, config and code, else None."""
    try:
        pointer = run.dataset.get_json(keys.LATEST)
        manifest: dict[str, Any] = run.dataset.get_json(pointer["manifest"])
    except MissingObject:
        return None
    same = (
        manifest.get("source", {}).get("listing_fingerprint") == run.source_fingerprint
        and manifest.get("generator", {}).get("run_config_digest") == config.digest()
        and manifest.get("software", {}).get("code_digest") == run.code_digest
    )
    return manifest if same else None




def _differing(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in sorted({*a, *b}) for d in _differing(a.get(key), b.get(key), f"{path}.{key}" if path else key)]
    return [] if a == b else [path]


_R = TypeVar("_R", bound=Record)


def recall(run: Run, key: str, record: type[_R], stage: str) -> _R:
    """The record that an earlier stage left in the run's folder.

    Raises:
        RunMismatch: that stage has not finished in this run; says which command makes it.
    """
    try:
        return record.from_json(run.folder.get_json(key))
    except MissingObject:
        raise RunMismatch(
            f"run {run.run_id} has no {key} yet: run `ganmill {stage} CONFIG --run-id {run.run_id}` first"
        ) from None
