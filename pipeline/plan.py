"""What to mint: how many rows of each class, cut into shards that are mixed alike.

The plan is pure: the same counts and target give the same shards, whoever makes them and however many make them at a
time. It is written down once per run, with the fingerprint of what it was made from, and never changes after that.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, overload

import numpy as np

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import ConfigError, MissingObject, PlanMismatch, StoreError
from pipeline.records import Checkpoint, Record, ShardPart, ShardSpec, Snapshot
from pipeline.store import Store, json_bytes

Target = str | Mapping[str, int]
MAX_ROWS_PER_CLASS = 2**31 - 1
_BITS = 32                                           # resolution of the common clock that mixes the classes
_CHUNK = 2**18                                       # numbers held at a time while shards are cut


@dataclass(frozen=True)
class Kept:
    """The published version that a plan continues: its shards come first and are taken over as they are."""

    plan: "Plan"
    version: str
    run_id: str


@dataclass(frozen=True)
class Plan(Sequence[ShardSpec]):
    """The shards of a version, each worked out when asked for: a million shards take no more memory than ten.

    Row k of a class with n rows stands at (k + ½)/n on a clock that all classes share; shard i takes the rows from
    i · `rows_per_shard` on in the order of that clock. So every shard has the classes in about the same proportions,
    all shards but the last are full, and each class's rows are numbered without gap or overlap.

    A plan that continues a version begins with that version's shards, unchanged; only what its classes have more is cut
    into shards as above, and numbered on from there.
    """

    classes: tuple[str, ...]
    rows_per_class: dict[str, int]                   # zeros included, and what is kept
    rows_per_shard: int
    kept: Kept | None = None

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(self.rows_per_class.values())

    @property
    def kept_shards(self) -> int:
        """Shards of the version that this plan continues."""
        return len(self.kept.plan) if self.kept else 0

    @property
    def kept_rows(self) -> int:
        """Their rows."""
        return self.kept.plan.rows if self.kept else 0

    def __len__(self) -> int:
        return self.kept_shards - (self.kept_rows - self.rows) // self.rows_per_shard

    @overload
    def __getitem__(self, index: int) -> ShardSpec: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShardSpec]: ...

    def __getitem__(self, index: int | slice) -> ShardSpec | list[ShardSpec]:
        if isinstance(index, slice):
            first, end, step = index.indices(len(self))
            if step == 1:
                return list(self._specs(first, max(first, end)))
            return [self[i] for i in range(first, end, step)]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        return next(self._specs(at, at + 1))

    def __iter__(self) -> Iterator[ShardSpec]:
        yield from self._specs(0, len(self))

    def _specs(self, first: int, end: int) -> Iterator[ShardSpec]:
        of, kept = len(self), self.kept_shards
        if self.kept and first < kept:
            for spec in self.kept.plan._specs(first, min(end, kept)):
                yield dataclasses.replace(spec, of=of)
        step = max(1, _CHUNK // max(1, len(self.classes)))
        for start in range(max(first, kept), end, step):
            yield from self._new_specs(start, min(start + step, end), of)

    def _new_specs(self, first: int, end: int, of: int) -> Iterator[ShardSpec]:
        taken = self._taken((np.arange(first, end + 1, dtype=np.int64) - self.kept_shards) * self.rows_per_shard)
        counts, earlier = np.diff(taken, axis=0), self._kept_per_class()
        for i in range(end - first):
            labels = np.flatnonzero(counts[i])
            parts = tuple(ShardPart(int(c), int(earlier[c] + taken[i, c]), int(counts[i, c])) for c in labels)
            yield ShardSpec(first + i, of, parts)

    def _kept_per_class(self) -> np.ndarray:
        kept = self.kept.plan.rows_per_class if self.kept else {}
        return np.array([kept.get(name, 0) for name in self.classes], dtype=np.int64)

    def _taken(self, rows: np.ndarray) -> np.ndarray:
        """How many of each class are among the first `rows` new rows: (n,) → (n, classes), each line adding up exactly."""
        every = np.array([self.rows_per_class[name] for name in self.classes], dtype=np.int64)
        sizes = (every - self._kept_per_class()).astype(np.uint64)
        wanted = np.minimum(rows, self.rows - self.kept_rows).astype(np.uint64)

        def passed(clock: np.ndarray) -> np.ndarray:     # rows of each class that stand before `clock` / 2**_BITS
            return (clock[:, None] * sizes + np.uint64(2 ** (_BITS - 1))) >> np.uint64(_BITS)

        low = np.zeros(len(wanted), dtype=np.uint64)     # the latest clock that no more than `wanted` rows stand before
        for bit in reversed(range(_BITS + 1)):
            trial = low + np.uint64(2**bit)
            fits = (trial <= 2**_BITS) & (passed(np.minimum(trial, 2**_BITS)).sum(axis=1) <= wanted)
            low = np.where(fits, trial, low)
        before = passed(low)
        here = passed(np.minimum(low + np.uint64(1), 2**_BITS)) - before        # rows that stand at this very tick …
        left = (wanted - before.sum(axis=1))[:, None].astype(np.int64)
        earlier = (np.cumsum(here, axis=1) - here).astype(np.int64)             # … go by class number
        return before.astype(np.int64) + np.clip(left - earlier, 0, here.astype(np.int64))


@dataclass(frozen=True)
class PlanRecord(Record):
    """`plan.json`: what was planned, of what, under which version's name."""

    version: str
    created: str                                     # UTC, as the manifest gives it
    rows_per_class: dict[str, int]
    rows_per_shard: int
    shards: int
    format: str
    made_of: dict[str, str]                          # what → fingerprint
    continues: tuple[dict[str, Any], ...] = ()       # the versions that it continues, the first one first: `link`
    format_version: int = 1

    def plan(self, classes: tuple[str, ...]) -> Plan:
        """The plan that was written down."""
        kept = None
        for link in self.continues:
            kept = Kept(Plan(classes, link["rows_per_class"], link["rows_per_shard"], kept), link["version"], link["run_id"])
        return Plan(classes, self.rows_per_class, self.rows_per_shard, kept)

    def link(self, run_id: str) -> dict[str, Any]:
        """This plan as an entry of a later one's `continues`."""
        return {"version": self.version, "run_id": run_id, "rows_per_class": self.rows_per_class,
                "rows_per_shard": self.rows_per_shard}


def make_plan(counts: Mapping[str, int], classes: Sequence[str], target: Target, rows_per_shard: int) -> Plan:
    """Plans the shards. Pure.

    Args:
        counts: class → real training images.
        classes: the source's names in the source's numbering.
        target: see `rows_to_make`.

    Raises:
        ConfigError: as `rows_to_make`.
    """
    return Plan(tuple(classes), rows_to_make(counts, classes, target), rows_per_shard)


def rows_to_make(counts: Mapping[str, int], classes: Sequence[str], target: Target) -> dict[str, int]:
    """Class → synthetic rows, zeros included.

    Args:
        target: `balance` fills each class up to the largest; `{per_class: n}` makes n of each; `{total: n}` spreads n
            so that real and synthetic together are as even as can be; `{class: n, …}` makes what it says. Classes
            without a training image get none, the generator never saw them.

    Raises:
        ConfigError: an unknown class, one without training images, more than 2³¹ − 1 rows of one, or nothing to make.
    """
    known = [name for name in classes if counts.get(name, 0) > 0]
    if not known:
        raise ConfigError("sample.target: the training split holds no image of any class; check source and subset")
    rows = dict.fromkeys(classes, 0)
    if target == "balance":
        largest = max(counts[name] for name in known)
        rows.update({name: largest - counts[name] for name in known})
    elif isinstance(target, str):
        raise ConfigError(f"sample.target: {target!r}; give balance, {{per_class: n}}, {{total: n}} or {{class: n, …}}")
    elif set(target) == {"per_class"}:
        rows.update(dict.fromkeys(known, target["per_class"]))
    elif set(target) == {"total"}:
        rows.update(_spread(target["total"], [counts[name] for name in known], known))
    else:
        rows.update(_asked(target, counts, classes))
    _check_sizes(rows, target)
    return rows


def makes_every_class(counts: Mapping[str, int], classes: Sequence[str], target: Target) -> bool:
    """Will there be images of each class that has real ones? Then none can be told by where its images come from.

    Raises:
        ConfigError: see `rows_to_make`.
    """
    if target == "balance":                          # makes none of the largest
        return False
    rows = rows_to_make(counts, classes, target)
    return all(rows[name] > 0 for name in classes if counts.get(name, 0) > 0)


def _asked(target: Mapping[str, int], counts: Mapping[str, int], classes: Sequence[str]) -> dict[str, int]:
    unknown = [name for name in target if name not in classes]
    if unknown:
        shown = ", ".join(list(classes)[:20]) + (f", … ({len(classes)} in all)" if len(classes) > 20 else "")
        raise ConfigError(f"sample.target: no class named {', '.join(map(repr, unknown))}; the classes are {shown}; "
                          "per_class and total stand alone")
    unseen = [name for name, n in target.items() if n > 0 and counts.get(name, 0) == 0]
    if unseen:
        raise ConfigError(f"sample.target: {', '.join(map(repr, unseen))} has no image in the training split, so the "
                          "generator can't make any; leave it out or widen the source")
    return dict(target)


def _check_sizes(rows: Mapping[str, int], target: Target) -> None:
    if sum(rows.values()) == 0:
        why = "all classes are equally large already" if target == "balance" else "it asks for no image"
        shown = target if isinstance(target, str) else dict(target)
        raise ConfigError(f"sample.target: {shown}: nothing to make, {why}; give {{per_class: n}} or {{total: n}}")
    for name, n in rows.items():
        if not 0 <= n <= MAX_ROWS_PER_CLASS:
            raise ConfigError(f"sample.target: {n:,} rows of class {name!r}; possible are 0 to {MAX_ROWS_PER_CLASS:,}")


def _spread(total: int, counts: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """`total` rows poured over the classes like water: the smallest rise together until all is used."""
    low, high = min(counts), max(counts) + total         # the highest whole level that `total` reaches
    while low < high:
        level = (low + high + 1) // 2
        if sum(max(0, level - c) for c in counts) <= total:
            low = level
        else:
            high = level - 1
    rows = {name: max(0, low - c) for name, c in zip(names, counts)}
    left = total - sum(rows.values())                    # fewer than the classes at this level: one more for the first
    for name, c in zip(names, counts):
        if left and c <= low:
            rows[name] += 1
            left -= 1
    return rows


def open_plan(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Store, dataset: Store, now: datetime | None = None
) -> tuple[Plan, PlanRecord]:
    """The run's plan and the name of its version: the one written down before, else a new one, put if absent.

    A plan whose version can't be published any more, because another run's later one is out, makes place for a new one.
    When the published version has rows of the very same generator, seed, format and filter, and no class has more of them
    than are asked for now, the new plan continues it.

    Raises:
        ConfigError: as `rows_to_make`.
        PlanMismatch: this run's plan was made of something else; names what.
    """
    counts = snapshot.rows_per_class["train"]
    fresh = make_plan(counts, snapshot.classes, config.sample.target, config.rows_per_shard)
    made_of = {"snapshot": snapshot.fingerprint, "config": config.work_digest(), "checkpoint": checkpoint.sha256}
    latest = _latest(dataset)
    stored = _stored(run)
    if stored is not None and stored.version < latest and not was_published(dataset, stored.version):
        withdraw(run, dataset, stored.version)
        stored = None
    if stored is None:
        continues = _continued(config, fresh, checkpoint, dataset, latest)
        stored = _write_down(config, fresh, made_of, run, latest, now or datetime.now(UTC), continues)
    _check_same(stored, made_of, run)
    return stored.plan(snapshot.classes), stored


def _continued(
    config: Config, plan: Plan, checkpoint: Checkpoint, dataset: Store, latest: str
) -> tuple[dict[str, Any], ...]:
    """What a new plan can go on from: the latest version and those that it continues; () when that has other rows."""
    try:
        published = dataset.get_json(f"{keys.version(latest)}/{keys.MANIFEST}") if latest else {}
        same = (
            published.get("seed") == config.seed and published.get("format") == config.sample.format
            and published.get("filter") == config.sample.filter and published.get("classes") == list(plan.classes)
            and published.get("truncation", 1.0) == config.sample.truncation
            and published["generator"]["digest"] == checkpoint.sha256
            and all(count <= plan.rows_per_class[name] for name, count in published["rows_per_class"].items())
        )
        if not same:
            return ()
        run_id = published["run_id"]
        before = PlanRecord.from_json(dataset.get_json(f"{keys.run(run_id)}/{keys.PLAN}"))
    except (MissingObject, TypeError, KeyError, AttributeError):     # nothing to go on from: all is made anew
        return ()
    return (*before.continues, before.link(run_id)) if before.version == latest else ()


def _write_down(
    config: Config, plan: Plan, made_of: dict[str, str], run: Store, latest: str, now: datetime,
    continues: tuple[dict[str, Any], ...],
) -> PlanRecord:
    number = keys.version_number(latest) + 1
    digest = keys.digest_of(*made_of.values(), run.url)
    record = PlanRecord(
        version=keys.version_name(number, now, digest), created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        rows_per_class=plan.rows_per_class, rows_per_shard=plan.rows_per_shard, shards=0,
        format=config.sample.format, made_of=made_of, continues=continues,
    )
    record = dataclasses.replace(record, shards=len(record.plan(plan.classes)))
    if run.put_if_absent(keys.PLAN, json_bytes(record.to_json())):
        return record
    return PlanRecord.from_json(run.get_json(keys.PLAN))     # another driver of this run was faster: its plan holds


def _check_same(stored: PlanRecord, made_of: Mapping[str, str], run: Store) -> None:
    differing = [f"{what} (was {stored.made_of.get(what, 'none')[:12]}, is {fingerprint[:12]})"
                 for what, fingerprint in made_of.items() if stored.made_of.get(what) != fingerprint]
    if differing:
        raise PlanMismatch(f"the plan in {run.where(keys.PLAN)} was made of another {' and another '.join(differing)}; "
                           "continue with what it was made of, or give another --run-id")


def _stored(run: Store) -> PlanRecord | None:
    try:
        content: Any = run.get_json(keys.PLAN)
    except MissingObject:
        return None
    try:
        return PlanRecord.from_json(content)
    except (TypeError, KeyError, AttributeError) as e:
        raise StoreError(f"{run.where(keys.PLAN)} is no plan ({e}); give another --run-id") from e


def _latest(dataset: Store) -> str:
    try:
        return str(dataset.get_json(keys.LATEST)["version"])
    except MissingObject:
        return ""


def was_published(dataset: Store, version: str) -> bool:
    """Whether `LATEST.json` ever pointed to `version`, by the chain of manifests that leads back from it."""
    at = _latest(dataset)
    while at and at > version:
        try:
            at = dataset.get_json(f"{keys.version(at)}/{keys.MANIFEST}").get("previous") or ""
        except MissingObject:                            # retention removed what was before
            return False
    return at == version


def withdraw(run: Store, dataset: Store, version: str) -> None:
    """Forgets a plan that can't be published any more, with the receipts and shards made for it. Visible to nobody."""
    run.delete(keys.PLAN)
    run.delete_prefix(keys.RECEIPT_BUNDLES)
    run.delete_prefix(keys.RECEIPTS)
    run.delete_prefix(keys.METADATA_PARTS)
    dataset.delete_prefix(keys.version(version))
