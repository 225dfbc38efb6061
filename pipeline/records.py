"""The facts that a run passes from stage to stage.

    Config → Snapshot → Checkpoint → Scorecard → Verdict → [ShardSpec] → [Receipt] → Version

Each is a frozen dataclass of plain values (JSON in, JSON out), so that a stage can be called by hand, tested alone
and resumed from what the run folder holds. Keys are relative to the run folder unless said otherwise.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar


class Record:
    """JSON in and out for the frozen dataclasses below."""

    def to_json(self) -> dict[str, Any]:
        """This record as plain JSON values (tuples become lists)."""
        return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self))))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The record that `to_json` wrote; keys of a later version that are unknown here are left out."""
        hints = _hints(cls)  # type: ignore[arg-type]
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: _revive(hints[k], v) for k, v in data.items() if k in names})


_T = TypeVar("_T")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _revive(hint: Any, value: Any) -> Any:
    """`value`, read from JSON, in the shape that the type `hint` asks for."""
    if value is None:
        return None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _revive(next(a for a in typing.get_args(hint) if a is not type(None)), value)
    if origin is tuple:
        args = typing.get_args(hint)
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        return tuple(_revive(inner if inner else a, v) for a, v in zip(args if not inner else [inner] * len(value), value))
    if origin is dict:
        return {k: _revive(typing.get_args(hint)[1], v) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return hint.from_json(value)  # type: ignore[union-attr]
    return float(value) if hint is float else value


@dataclass(frozen=True)
class Snapshot(Record):
    """Prepared data in the run folder: what every later stage reads instead of the source.

    `prepared/<split>.safetensors` for train, val and test hold `images` uint8 (N, C, H, W) and `labels` int64 (N,).
    """

    fingerprint: str                                 # sha256 over the prepared arrays, classes and split names
    source_fingerprint: str                          # of the source as it lies there (cheap to recompute)
    source_format: str
    source_url: str | None
    classes: tuple[str, ...]                         # the source's names in the source's numbering, absent ones included
    resolution: int
    channels: int
    rows_per_class: dict[str, dict[str, int]]        # split → class name → rows (zeros included)
    official_test: bool                              # the source brought its own test split
    quarantined: dict[str, int] = field(default_factory=dict)   # reason → items left out
    converted: dict[str, int] = field(default_factory=dict)     # what was mended on reading (e.g. "CMYK to RGB") → items
    duplicates: int = 0                              # items whose content another item has too
    seconds: float = 0.0
    prepared_with: dict[str, Any] = field(default_factory=dict)  # the config's seed, source and prepare that made it
    notes: tuple[str, ...] = ()                      # what a reader must know, e.g. "class 'x' has 3 of 50 images asked"

    @property
    def rows(self) -> dict[str, int]:
        """Split → rows."""
        return {split: sum(per_class.values()) for split, per_class in self.rows_per_class.items()}


@dataclass(frozen=True)
class Checkpoint(Record):
    """A trained generator: `key` names one safetensors object in the run folder, its JSON lies beside it."""

    key: str
    sha256: str
    model: str                                       # the family that trained, `auto` resolved
    preset: str                                      # why this family and recipe, in words ("auto: grey 32 px, …")
    net: dict[str, Any]                              # the network spec, enough to rebuild G
    trained_kimg: float
    images_per_s: float
    seconds: float
    config_digest: str
    train_fingerprint: str                           # fingerprint of the snapshot it was trained on
    validation: float | None = None                  # distance to the val images by which it was chosen; None: too short a run
    choice: str = ""                                 # which of its run's checkpoints this is, in words
    restarts: tuple[str, ...] = ()                   # why training went back to an earlier checkpoint


@dataclass(frozen=True)
class LiftFigure(Record):
    """Does adding synthetic images help a classifier? Paired over seeds, balanced accuracy in percent."""

    seeds: tuple[int, ...]
    chosen_ratio: float                              # picked on val, 0 = none
    ratios: tuple[float, ...]
    baseline: tuple[float, ...]                      # per seed: the best arm without synthesis by val, on test
    synthetic: tuple[float, ...]                     # per seed: the best arm with synthesis by val, on test
    lift_pp: float                                   # mean of the paired differences, percentage points
    interval_pp: tuple[float, float]                 # 95 % interval of the mean difference
    recall_baseline: dict[str, float]                # class → mean recall on test, 0…1
    recall_synthetic: dict[str, float]
    sentence: str                                    # the verdict in one sentence
    seconds: float = 0.0
    rows: tuple[dict[str, Any], ...] = ()            # every trained classifier: seed, arm, ratio, val and test figures
    won: bool = False                                # all that a win needs, see `pipeline.lift.verdict`
    arms: tuple[str, ...] = ("", "")                 # names of the two arms compared
    mix: dict[str, Any] = field(default_factory=dict)   # what val recommends, see `pipeline.lift.verdict.recommended`
    preferred_filter: dict[str, float] = field(default_factory=dict)   # best on val of those tried, whatever is published
    rival: dict[str, Any] = field(default_factory=dict)     # the arm without synthesis that is best on test, if val passed it over
    test_advised: bool = False                       # val being too small to tell, `mix` is what it likes best unless test denies it
    cross_validated: dict[str, float] = field(default_factory=dict)   # ways without synthesis, on folds of train and val, in percent


class Scored(typing.Protocol):
    """What the manifest needs to know of a scorecard, whatever was measured."""

    @property
    def lift(self) -> LiftFigure | None:
        """The lift trial, where there was one."""

    @property
    def scores(self) -> dict[str, float]:
        """The figures that the manifest carries."""


@dataclass(frozen=True)
class Scorecard(Record):
    """What was measured of a generator. Every figure comes with N and the real-against-real floor where it has one."""

    samples: int                                     # N generated images, labels as the real test prior unless said otherwise
    features: str                                    # domain | random | inception
    fd: float                                        # Fréchet distance generated ↔ real held-out images
    fd_floor: float                                  # the same of unseen real images in the samples' place
    fd_reference: str                                # which real set, how many
    precision: float
    recall: float
    density: float
    coverage: float                                  # mean of the per-class coverage
    coverage_per_class: dict[str, float]
    agreement: float                                 # share of samples that an independent classifier gives the asked label
    agreement_per_class: dict[str, float]
    judge_accuracy: float                            # of that classifier on the held-out real images
    diversity_per_class: dict[str, float]            # mean pairwise feature distance, generated / real; 1 = as varied
    memorised: float                                 # share of samples nearer to a training image than real images are
    nearest_pairs_key: str | None = None             # PNG of the twenty nearest (generated, train) pairs
    lift: LiftFigure | None = None
    real: dict[str, float] = field(default_factory=dict)        # the same figures of unseen real images in the samples' place
    matched: dict[str, float] = field(default_factory=dict)     # "fd", "recall" of as many samples of each class as are in `real`
    kernel_distance: float | None = None             # unbiased MMD² ×1000 on the same features; around 0 for equal sets
    inception_like: float | None = None              # exp mean KL by the judge's probabilities: 1 … number of classes
    authentic: float | None = None                   # share of samples farther from their nearest training image than
                                                     # that one is from the rest; `real["authentic"]` is what to expect
    notes: tuple[str, ...] = ()                      # what a reader must know, e.g. "class 'x' has 3 test images"
    seconds: float = 0.0

    @property
    def fd_ratio(self) -> float:
        """How many times as far from real images as other real images the samples lie, equally many of both; NaN if unknown."""
        return self.matched.get("fd", math.nan) / self.fd_floor if self.fd_floor > 0 else math.nan

    @property
    def scores(self) -> dict[str, float]:
        """The figures that the manifest carries."""
        figures = {
            f"fd_{self.features}": self.fd, f"fd_{self.features}_floor": self.fd_floor, "precision": self.precision,
            "recall": self.recall, "density": self.density, "coverage": self.coverage, "agreement": self.agreement,
            "judge_accuracy": self.judge_accuracy, "memorised": self.memorised,
            "diversity_lowest": min(self.diversity_per_class.values(), default=0.0),
        }
        if "fd" in self.matched:
            figures[f"fd_{self.features}_matched"] = self.matched["fd"]
        if self.lift is not None and self.lift.seeds:
            figures["lift_pp"] = self.lift.lift_pp
        return {name: round(float(value), 4) for name, value in figures.items()}


@dataclass(frozen=True)
class Verdict(Record):
    """The gate's word: passed, or which figures failed and by how much."""

    passed: bool
    reasons: tuple[str, ...] = ()                    # one sentence per failed figure: name, value, threshold
    enforced: bool = True                            # False when `gate.enabled: false`


@dataclass(frozen=True)
class ShardPart(Record):
    """`count` rows of one class, numbered from `first` within that class over the whole plan."""

    label: int
    first: int
    count: int


@dataclass(frozen=True)
class ShardSpec(Record):
    """What one shard must hold; its content follows from (run seed, this spec, checkpoint) alone."""

    index: int
    of: int
    parts: tuple[ShardPart, ...]

    @property
    def rows(self) -> int:
        """Rows in this shard."""
        return sum(part.count for part in self.parts)


@dataclass(frozen=True)
class Receipt(Record):
    """Proof that a shard is whole in the store. `key` is relative to the version's folder."""

    index: int
    key: str                                         # for png: the key of the shard's part of metadata
    rows: int
    rows_per_class: dict[str, int]
    bytes: int
    sha256: str
    seed: int
    rejects: dict[str, int] = field(default_factory=dict)       # reason → redrawn rows
    files: tuple[dict[str, Any], ...] = ()           # png: [{"key", "bytes", "sha256"}, …]; else empty
    seconds: float = 0.0

    def fits(self, spec: ShardSpec, seed: int, classes: Sequence[str]) -> bool:
        """Whether this is the receipt of that shard, in a run of that seed."""
        asked = {classes[part.label]: part.count for part in spec.parts}
        return self.index == spec.index and self.rows_per_class == asked and self.seed == seed


@dataclass(frozen=True)
class Version(Record):
    """A published version, visible to readers through `LATEST.json`."""

    name: str
    url: str                                         # of the version's folder
    manifest_sha256: str
    rows: int
    rows_per_class: dict[str, int]
    shards: int
    report_url: str
