"""How a run ended, for a person in one line and for a program in plain values."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipeline import keys
from pipeline.records import Version
from pipeline.runs import Run
from pipeline.wording import counted


@dataclass(frozen=True)
class Outcome:
    """The end of a run that went well."""

    status: str                                      # published | up to date
    run_id: str
    dataset_url: str
    version: str
    rows: int
    rows_per_class: dict[str, int]
    report_url: str
    sentence: str

    def to_result(self) -> dict[str, Any]:
        """Plain values, with `text` for a person."""
        return {**dataclasses.asdict(self), "text": self.sentence}


def published(run: Run, version: Version, rows_are: str = "images") -> Outcome:
    """A new version is visible."""
    return Outcome(
        "published", run.run_id, run.dataset.where(), version.name, version.rows, dict(version.rows_per_class),
        version.report_url,
        f"published {version.name}: {version.rows:,} {rows_are} in {counted(version.shards, 'object')} "
        f"at {version.url}\n"
        f"report: {version.report_url}",
    )


def up_to_date(run: Run, manifest: dict[str, Any]) -> Outcome:
    """The latest version was made from this very source, config and code."""
    name = manifest["version"]
    folder = run.dataset.child(keys.version(name))
    return Outcome(
        "up to date", run.run_id, run.dataset.where(), name, manifest["rows"], manifest["rows_per_class"],
        folder.where(keys.REPORT),
        f"up to date: {name} at {folder.where()} was made from the same source, config and code; nothing to do",
    )
