"""`ganmill runs` and `ganmill status`: what the run folders in the store tell."""

from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, MissingObject
from pipeline.history import RunStatus, list_runs, locate_run, read_run
from pipeline.store import Store

DEFAULT_PLACE = "./out"
_SHOWN = 20


def show_runs(place: str | None) -> dict[str, Any]:
    """Every run of a dataset, the newest first.

    Args:
        place: a config file, a dataset's URL, or None for every dataset below ./out.
    """
    found = [status for dataset in _datasets(place) for status in _runs_of(dataset, place is not None)]
    if not found:
        raise MissingObject(f"no run below {place or DEFAULT_PLACE}: give a config, or a dataset's URL <publish.url>/<name>")
    found.sort(key=lambda s: s.last_sign or "", reverse=True)
    head = ("run", "dataset", "state", "stage", "last sign", "version")
    rows = [(s.run_id, s.dataset.rsplit("/", 1)[-1], s.state, s.stage + (f" ({s.progress})" if s.progress else ""),
             s.last_sign or "", s.version or "") for s in found[:_SHOWN]]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)]
    if len(found) > _SHOWN:
        lines.append(f"… {len(found) - _SHOWN} older ones; --json shows all")
    return {"text": "\n".join(lines), "runs": [s.to_json() for s in found]}


def show_status(run: str, place: str | None) -> dict[str, Any]:
    """One run: its stage, how far it is, when, and how it ended.

    Args:
        run: a run's id or its folder's URL.
        place: where to look for an id, as for `show_runs`.
    """
    located = locate_run(run)
    if located is not None:
        return _told(read_run(*located))
    if "/" in run:
        raise ConfigError(f"{run!r} is neither a run's id nor its folder's URL <publish.url>/<name>/runs/<run id>")
    datasets = _datasets(place)
    for dataset in datasets:
        try:
            return _told(read_run(dataset, run))
        except MissingObject:
            continue
    where = datasets[0].where() if len(datasets) == 1 else place or DEFAULT_PLACE
    raise MissingObject(f"no run {run} in {where}: `ganmill runs` lists them; --in takes a config or a dataset's URL")


def _told(status: RunStatus) -> dict[str, Any]:
    sentence = {
        "published": f"published {status.version}",
        "refused": f"refused: {' '.join(status.reasons)}",
        "unfinished": f"unfinished, in stage {status.stage}" + (f": {status.progress}" if status.progress else "")
                      + "; `ganmill run` with the same config continues it",
    }[status.state]
    lines = [f"{status.run_id}  {sentence}", f"begun      {status.begun or 'unknown'}", f"last sign  {status.last_sign or 'unknown'}",
             f"folder     {status.url}"]
    return {"text": "\n".join(lines), **status.to_json()}


def _runs_of(dataset: Store, asked_for: bool) -> list[RunStatus]:
    try:
        return list_runs(dataset)
    except MissingObject:
        if asked_for:
            raise
        return []


def _datasets(place: str | None) -> list[Store]:
    if place is None:
        root = Path(DEFAULT_PLACE)
        return [Store(str(folder)) for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
    if place.endswith((".yaml", ".yml")):
        from pipeline.config import load_config

        config = load_config(place)
        return [Store(config.dataset_url, config.publish.storage_options)]
    return [Store(place)]
