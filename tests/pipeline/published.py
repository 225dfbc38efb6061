"""A small published run out of scikit-learn's digits, for the tests of report, card and Croissant."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, parse_config
from pipeline.documents.report import ReportInputs
from pipeline.grids import tile_grid
from pipeline.records import Checkpoint, LiftFigure, Scorecard, Snapshot, Verdict

HOSTILE = (
    "yes",
    "1e3",
    "a: b",
    'it\'s "quoted"',
    "007",
    "08",
    "null",
    "~",
    "<script>alert(1)</script>",
    "наука 科学 🌱",
    "x | y\n# z",
    "- dash",
    "{{ 7*7 }}",
    "true",
    "1_000",
    "---",
    "#hash",
    "*star*",
    " space ",
    "0x1F",
    "12:30",
    "\\back\\",
    "%percent",
    "@at",
    "`tick`",
    "a/b",
    "..",
)


def digits(size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 1, size, size) and labels, scikit-learn's 8 × 8 digits enlarged smoothly."""
    import cv2
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.stack(
        [cv2.resize((a * 15.9).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC) for a in data.images]
    )
    return images[:, None], data.target.astype(np.int64)


def config(**changes: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "digits",
        "seed": 7,
        "source": {"format": "digits"},
        "publish": {"url": "s3://bucket/sets", "storage_options": {"secret": "hunter2"}},
    }
    return parse_config({**raw, **changes})


def snapshot(classes: tuple[str, ...], real: dict[str, int], **changes: Any) -> Snapshot:
    split = {name: max(1, count // 5) for name, count in real.items()}
    return Snapshot(
        **{
            "fingerprint": "f" * 64,
            "source_fingerprint": "5" * 64,
            "source_format": "digits",
            "source_url": None,
            "classes": classes,
            "resolution": 32,
            "channels": 1,
            "rows_per_class": {"train": real, "val": split, "test": split},
            "official_test": False,
            "quarantined": {"truncated file": 3, "no label": 1},
            "converted": {"CMYK to RGB": 12},
            "duplicates": 4,
            **changes,
        }
    )


def lift(classes: tuple[str, ...], difference: float = 1.3, spread: float = 0.4, seeds: int = 5) -> LiftFigure:
    rng = np.random.default_rng(1)
    base = rng.normal(91, 0.5, seeds)
    gain = difference + spread * np.linspace(-1, 1, seeds)
    before = {name: float(np.clip(rng.normal(0.9, 0.05), 0, 1)) for name in classes}
    low, high = difference - 0.9 * spread, difference + 0.9 * spread
    word = "Synthetic images lift balanced accuracy" if low > 0 else "Balanced accuracy changes"
    return LiftFigure(
        seeds=tuple(range(seeds)),
        chosen_ratio=0.5 if difference > 0 else 0.0,
        ratios=(0.5, 1.0),
        baseline=tuple(map(float, base)),
        synthetic=tuple(map(float, base + gain)),
        lift_pp=difference,
        interval_pp=(low, high),
        recall_baseline=before,
        recall_synthetic={n: float(np.clip(v + rng.normal(difference / 100, 0.02), 0, 1)) for n, v in before.items()},
        won=low > 0,
        sentence=f"{word} by {difference:+.2f} points (95 % interval {low:+.2f} … {high:+.2f}, {seeds} seeds).",
        rows=tuple(
            {"seed": s, "arm": arm, "ratio": r, "val": float(base[s]), "test": float(base[s] + gain[s] * (r > 0))}
            for s in range(seeds)
            for arm, r in (("classical", 0.0), ("synthetic", 0.5), ("synthetic", 1.0))
        ),
    )


def scorecard(classes: tuple[str, ...], figure: LiftFigure | None = None, **changes: Any) -> Scorecard:
    rng = np.random.default_rng(2)

    def each(mean: float, sd: float) -> dict[str, float]:
        return {name: float(np.clip(rng.normal(mean, sd), 0, 1.2)) for name in classes}

    return Scorecard(
        **{
            "samples": 5000,
            "features": "domain",
            "fd": 12.34,
            "fd_floor": 4.01,
            "matched": {"fd": 12.43},
            "fd_reference": "270 real test images",
            "precision": 0.83,
            "recall": 0.71,
            "density": 0.93,
            "coverage": 0.812,
            "coverage_per_class": each(0.8, 0.06),
            "agreement": 0.971,
            "agreement_per_class": {n: min(1.0, v) for n, v in each(0.97, 0.02).items()},
            "judge_accuracy": 0.985,
            "diversity_per_class": each(0.86, 0.07),
            "memorised": 0.004,
            "lift": figure,
            "notes": ("class '8' has 5 test images",),
            **changes,
        }
    )


def checkpoint() -> Checkpoint:
    return Checkpoint(
        "checkpoints/kimg-000200.0000.safetensors",
        "c" * 64,
        "dcgan",
        "auto: grey 32 px, 31 images per class, 200 kimg",
        {"family": "dcgan", "resolution": 32, "channels": 1, "classes": 10, "z_dim": 64, "width": 64},
        200.0,
        2250.4,
        88.9,
        "abc",
        "f" * 64,
    )


def metrics(classes: tuple[str, ...], count: int = 300) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for k in range(count):
        t = (k + 1) / count
        rows.append(
            {
                "kimg": 200 * t,
                "seconds": 89 * t,
                "loss_g": 1.2 + 0.5 * np.exp(-5 * t) + rng.normal(0, 0.15),
                "loss_d": 0.9 - 0.3 * t + rng.normal(0, 0.1),
                "grad_norm_g": float(np.exp(rng.normal(-1 - t, 0.4))),
                "grad_norm_d": float(np.exp(rng.normal(0.5, 0.3))),
                "images_per_s": 2250 + rng.normal(0, 80) - (900 if 100 < k < 120 else 0),
            }
        )
        if k % 10 == 0:
            rows[-1]["diversity_per_class"] = {
                str(i): float(
                    1
                    - np.exp(-6 * t) * (0.5 + 0.05 * (i % 10))
                    - (0.2 if i == 3 else 0.02 * (i % 7)) * t
                    + rng.normal(0, 0.01)
                )
                for i, _ in enumerate(classes)
            }
    return rows


def report_inputs(classes: tuple[str, ...] | None = None, columns: int = 8, **changes: Any) -> ReportInputs:
    """A whole run with pictures; the "synthetic" ones are noisy digits."""
    images, labels = digits()
    names = classes or tuple(str(i) for i in range(10))
    rng = np.random.default_rng(0)
    pick = [images[labels == i % 10] for i in range(len(names))]
    real_grid = np.stack([p[:columns] for p in pick])
    fake_grid = np.stack(
        [
            np.clip(p[columns : 2 * columns].astype(float) + rng.normal(0, 12, p[columns : 2 * columns].shape), 0, 255)
            for p in pick
        ]
    ).astype(np.uint8)
    real = {name: max(5, int(50 * 0.75**i)) for i, name in enumerate(names)}
    flat = fake_grid[:10].reshape(-1, 1, 32, 32)
    progress = [
        (
            kimg,
            tile_grid(np.clip(flat * w + rng.integers(0, 255, flat.shape) * (1 - w), 0, 255).astype(np.uint8), columns),
        )
        for kimg, w in zip((5.0, 20.0, 60.0, 110.0, 160.0, 200.0, 210.0), (0.1, 0.4, 0.7, 0.85, 0.95, 0.99, 1.0))
    ]
    pairs = np.stack(
        [a for n in range(20) for a in (fake_grid[n % len(names), n % columns], real_grid[n % len(names), n % columns])]
    )
    base = ReportInputs(
        config=config(),
        snapshot=snapshot(names, real),
        checkpoint=checkpoint(),
        scorecard=scorecard(names, lift(names)),
        verdict=Verdict(True),
        plan={name: 50 - count for name, count in real.items()},
        run_id="2f6a1c09be11",
        version="20260131T020000Z-2f6a1c",
        created="2026-01-31T02:00:00Z",
        metrics=metrics(names),
        real_grid=real_grid,
        fake_grid=fake_grid,
        progress_grids=progress,
        nearest_pairs=tile_grid(pairs, 10),
        timings={"prepare": 1.2, "train": 88.9, "evaluate": 61.0, "sample": 4.4, "publish": 0.6},
        rejects={"confidence": 31},
        software={"ganmill": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
    )
    return dataclasses.replace(base, **changes)


# ---- a version on disk ----


def write_version(
    folder: Path,
    format_name: str,
    classes: tuple[str, ...],
    rows_each: int = 3,
    shards: int = 2,
    scores: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Writes data files as publication does, and returns their manifest."""
    from pipeline.shards import ShardRows, encode

    images, labels = digits()
    asked = np.repeat(np.arange(len(classes)), rows_each)
    pixels = np.stack([images[labels == c % 10][n % rows_each] for n, c in enumerate(asked)])
    listed, metadata = [], b""
    for n in range(shards):
        mine = np.arange(n, len(asked), shards)
        rows = ShardRows(
            pixels[mine],
            asked[mine],
            [f"{asked[i]:04d}-{i:04d}" for i in mine],
            1000 + mine,
            classes,
            {name: np.linspace(0, 1, len(mine), dtype=np.float32) for name in scores},
            "c" * 64,
        )
        encoded = encode(format_name, rows, n, shards)
        metadata += encoded.metadata
        listed += _put(folder, encoded.objects)
    extra = {}
    if metadata:
        (folder / "data" / "metadata.jsonl").write_bytes(metadata)
        digest = hashlib.sha256(metadata).hexdigest()
        extra = {"metadata": {"key": "data/metadata.jsonl", "bytes": len(metadata), "sha256": digest}}
    per_class = dict.fromkeys(classes, rows_each)
    return {
        "format_version": 1,
        "dataset": "digits",
        "version": "20260131T020000Z-2f6a1c",
        "created": "2026-01-31T02:00:00Z",
        "run_id": "2f6a1c09be11",
        "seed": 7,
        "format": format_name,
        "classes": list(classes),
        "rows": len(asked),
        "rows_per_class": per_class,
        "bytes": sum(s["bytes"] for s in listed),
        "shards": listed,
        "source": {
            "url": "s3://key:secret@bucket/real?token=t0ken",
            "format": "idx",
            "fingerprint": "5" * 64,
            "rows_per_class": per_class,
        },
        "generator": {"model": "r3", "digest": "c" * 64, "config_digest": "abc", "trained_kimg": 200},
        "scores": {"fd_domain": 12.3, "coverage": 0.81},
        "verdict": {"passed": True, "reasons": []},
        "recommended_mix": {"ratio": 0.5},
        "rejects": {"confidence": 31},
        "software": {"ganmill": "0.1.0", "torch": "2.13.0"},
        **extra,
    }


def _put(folder: Path, objects: Any) -> list[dict[str, Any]]:
    """Writes objects and lists them as the manifest does: one entry an object."""
    entries = []
    for o in objects:
        (folder / o.key).parent.mkdir(parents=True, exist_ok=True)
        (folder / o.key).write_bytes(o.data)
        digest = hashlib.sha256(o.data).hexdigest()
        entries.append({"key": o.key, "rows": 1, "rows_per_class": {}, "bytes": len(o.data), "sha256": digest})
    return entries
