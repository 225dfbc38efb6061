"""Commands that only look: `validate`, `show`, `verify`."""

from typing import Any

import yaml

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.wording import counted

MAX_CLASSES_SHOWN = 30
BYTES_PER_PIXEL = 0.5                                # of a shard, about


def validate_config(config: Config) -> dict[str, Any]:
    """Checks a config and its source, and says what a run would do; writes nothing.

    Raises:
        ConfigError, SourceError: whatever would stop the run before any work.
    """
    from pipeline import estimate
    from pipeline.cluster import check_resources
    from pipeline.inspection import inspect
    from pipeline.plan import make_plan
    from pipeline.runs import public_config
    from pipeline.training import check_model

    check_resources(config)
    check_address(config)
    if config.source.format == "gaussians":
        return _validate_points(config)
    source = inspect(config)
    plan = make_plan(source.rows_per_class["train"], source.classes, config.sample.target, config.rows_per_shard)
    real = source.rows_per_class["train"]
    model = check_model(config, [real[name] for name in source.classes])
    rows = source.rows_per_class
    seconds = estimate.seconds(config, list(real.values()), sum(rows["val"].values()), plan.rows, source.estimated_seconds)
    cost = _cost(config, plan.rows, seconds)
    text = "\n".join([
        yaml.safe_dump(_without_none(public_config(config)), sort_keys=False, allow_unicode=True).rstrip(), "",
        _table(("class", "train", "val", "test", "synthetic"), [
            (name, real[name], source.rows_per_class["val"][name], source.rows_per_class["test"][name], plan.rows_per_class[name])
            for name in source.classes
        ]),
        *(f"note: {note}" for note in source.notes), "",
        f"model: {model}",
        f"source: {source.format}, {source.image}; fingerprint {source.fingerprint[:12]}",
        f"estimated: {max(1, round(cost['seconds'] / 60)):,} min {'with a GPU' if config.train.gpus_per_worker else 'on two CPU cores'}, "
        f"{cost['bytes'] / 2**20:.1f} MiB of shards",
        f"ok: {plan.rows:,} synthetic images in {len(plan)} {config.sample.format} shard{'s' if len(plan) != 1 else ''} "
        f"would go to {config.dataset_url}; nothing was written",
    ])
    return {"text": text, "config": public_config(config), "rows": plan.rows, "rows_per_class": plan.rows_per_class,
            "shards": len(plan), "source_rows": source.rows_per_class, "estimated": cost, "model": model, "notes": list(source.notes)}


def _validate_points(config: Config) -> dict[str, Any]:
    from pipeline.plane.walk import expected
    from pipeline.runs import public_config

    found = expected(config)
    trained = f"{found['seconds']:g} s" if found["steps"] is None else f"{found['steps']:,} steps"
    text = "\n".join([
        yaml.safe_dump(_without_none(public_config(config)), sort_keys=False, allow_unicode=True).rstrip(), "",
        f"source: mixture {found['mixture']}, {found['modes']} Gaussians on the plane",
        f"model: two perceptrons, {trained}, {counted(found['runs'], 'training')}",
        f"ok: {found['rows']:,} points in {counted(found['shards'], 'parquet shard')} would go to "
        f"{config.dataset_url}; nothing was written",
    ])
    return {"text": text, "config": public_config(config), **found}


def check_address(config: Config) -> None:
    """Refuses an address that is no address, without connecting."""
    from pipeline.cluster import parse_address

    parse_address(config.cluster.address)


def show_dataset(url: str) -> dict[str, Any]:
    """What a published dataset holds."""
    from pipeline.publication import show

    found = show(url)
    return {"text": "\n\n".join(_described(version) for version in found["versions"]), **found}


def verify_dataset(url: str, deep: bool, orphans: bool, remove: bool = False) -> dict[str, Any]:
    """Checks every shard of a version; raises `CorruptShard` at the first fault. Then, with `remove`, clears orphans away."""
    from pipeline.manifest import locate
    from pipeline.publication import verify
    from pipeline.retention import collect_garbage

    if remove and not orphans:
        raise ConfigError("--remove removes orphans: give it together with --orphans")
    found = verify(url, deep=deep, orphans=orphans)
    removed = collect_garbage(locate(url)[0]) if remove else []
    gone = set(removed)
    lines = [f"ok: {found['version']}: {found['rows']:,} rows in {found['shards']:,} objects, {found['bytes'] / 2**20:.1f} MiB, "
             + ("every row decoded" if deep else "every sha256 right")]
    if orphans:
        lines += [f"{'removed' if key in gone else 'orphan'}: {key}" for key in found["orphans"]] or ["no orphans"]
        lines += [f"not published (in the making, or given up): {name}" for name in found["unpublished"]]
    return {"text": "\n".join(lines), **found, **({"removed": removed} if remove else {})}


def _described(version: dict[str, Any]) -> str:
    source, generator, scores = version["source"], version["generator"], version["scores"]
    real, made = source["rows_per_class"], version["rows_per_class"]
    verdict = "passed" if version["verdict"]["passed"] else "not passed: " + " ".join(version["verdict"]["reasons"])
    mix = version["recommended_mix"] or {}
    lines = [
        f"{version['version']}  {version['created']}  {version['rows']:,} {version.get('rows_are') or 'images'} "
        f"in {version['shards']:,} {version['format']} "
        f"objects, {version['bytes'] / 2**20:.1f} MiB",
        f"source     {source['format']} {source['url'] or ''}  {source['fingerprint'][:12]}",
        f"generator  {generator['model']}, {generator['trained_kimg']:,.0f} kimg, {generator['digest'][:12]}",
        f"gate       {verdict}" + (f"; recommended synthetic per real: {mix['ratio']:g}" if mix else ""),
        "scores     " + ", ".join(f"{name} {value:g}" for name, value in scores.items() if value is not None),
        _table(("class", "real", "synthetic"), [(name, real.get(name, 0), made[name]) for name in version["classes"]]),
    ]
    if version["continues"]:
        lines.append(f"continues  {version['continues']['version']}: {version['continues']['rows']:,} of its images, made no second time")
    if version["changes"] is not None:
        changes = version["changes"]
        rows = ", ".join(f"{name} {more:+,}" for name, more in changes["rows_per_class"].items()) or "none in the rows per class"
        lines.append(f"changes since the version before: {rows}")
        lines.append("changes in scores: " + (", ".join(f"{name} {more:+g}" for name, more in changes["scores"].items()) or "none"))
    return "\n".join(lines)


def _without_none(value: Any) -> Any:
    return {k: _without_none(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _cost(config: Config, rows: int, seconds: float) -> dict[str, float]:
    pixels = config.prepare.resolution**2 * (3 if config.prepare.channels == "rgb" else 1)
    return {"seconds": round(seconds, 1), "bytes": int(rows * pixels * BYTES_PER_PIXEL)}


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    shown = rows if len(rows) <= MAX_CLASSES_SHOWN else rows[: MAX_CLASSES_SHOWN - 1]
    cells = [head, *((str(name), *(f"{n:,}" for n in numbers)) for name, *numbers in shown)]
    sums = ("all", *(f"{sum(r[i] for r in rows):,}" for i in range(1, len(head))))
    if len(shown) < len(rows):
        cells.append((f"… {len(rows) - len(shown)} more", *[""] * (len(head) - 1)))
    cells.append(sums)
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells)
