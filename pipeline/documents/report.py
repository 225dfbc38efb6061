"""The report: one HTML file that needs no network, no script and no font of its own.

Facts in (`ReportInputs`), text out. The page's words are in `templates/report.html.j2`, its looks in
`templates/report.css`; everything that comes from data (class names, file names, sentences) is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from pipeline.config import Config
from pipeline.documents import charts
from pipeline.documents.card import Loading, how_to_load
from pipeline.documents.figures import (
    decimal,
    distance_reference,
    figures,
    lift_reference,
    lift_sentence,
    lift_value,
    lift_word,
    percent,
    points,
    rarest_and_most_frequent,
)
from pipeline.documents.lift_section import Sieved, lift_section, number
from pipeline.documents.page import duration, render_page
from pipeline.documents.pictures import MAX_IMAGE_PX, MAX_LINE_PX, Picture, Strip, cut, per_line, picture, strip
from pipeline.records import Checkpoint, Scorecard, Snapshot, Verdict
from pipeline.redaction import public_config, public_url
from pipeline.wording import counted

MAX_GRID_BYTES = 1_200_000                           # of PNG; base64 adds a third, the three together stay under 3 MB
MAX_PROGRESS_BYTES = 500_000
MAX_NEAREST_BYTES = 250_000
PROGRESS_GRIDS = 6
SHOWN_EACH = 10                                      # of more classes than twice that: the rarest and the most frequent


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows. Images are uint8, (C, H, W) each."""

    config: Config
    snapshot: Snapshot
    checkpoint: Checkpoint
    scorecard: Scorecard
    verdict: Verdict
    plan: Mapping[str, int]                          # class name → synthetic rows (to be) made
    run_id: str
    version: str | None = None                       # None: nothing was published
    created: str = ""                                # ISO time, as in the manifest
    metrics: Sequence[Mapping[str, Any]] = ()        # lines of metrics.jsonl; any key may be missing
    real_grid: Sequence[np.ndarray] | np.ndarray = ()   # per class (n, C, H, W), in the snapshot's order; n may be 0
    fake_grid: Sequence[np.ndarray] | np.ndarray = ()
    progress_grids: Sequence[tuple[float, bytes]] = ()  # (kimg, PNG)
    nearest_pairs: bytes | None = None               # PNG of (generated, training) pairs
    timings: Mapping[str, float] = field(default_factory=dict)     # stage → seconds
    software: Mapping[str, str] = field(default_factory=dict)      # name → version
    rejects: Mapping[str, int] = field(default_factory=dict)       # reason → redrawn rows
    sieved: Sequence[Sieved] = ()                  # what the filter keeps and throws away, a few classes


def render_report(inputs: ReportInputs) -> str:
    """The page as text (UTF-8 when written). Pure: the same inputs give the same page."""
    i = inputs
    shown, folded = rarest_and_most_frequent(i.snapshot.rows_per_class.get("train", {}), i.snapshot.classes, SHOWN_EACH)
    return render_page(
        "report.html.j2", i=i, s=i.scorecard, headline=_headline(i), tiles=_tiles(i), loading=_loading(i),
        made=_made(i), shown=shown, folded=folded, grids=_grids(i, shown, folded),
        scores=figures(i.scorecard, i.config.gate, i.snapshot), per_class=_per_class(i),
        lift=lift_section(i.config, i.snapshot, i.scorecard.lift, i.sieved), curves=_curves(i), progress=_progress(i.progress_grids),
        nearest=_nearest(i.nearest_pairs), timings=_timings(i.timings),
        settings=yaml.safe_dump(public_config(i.config), sort_keys=False, allow_unicode=True, width=100),
        source_url=public_url(i.snapshot.source_url),
    )


# ---- the verdict and the figures at the top ----


@dataclass(frozen=True)
class Headline:
    """The verdict: its colour, one sentence, and what failed."""

    kind: str                                        # good | warn | bad
    sentence: str
    reasons: tuple[str, ...]
    lift: str


def _headline(i: ReportInputs) -> Headline:
    lift = lift_sentence(i.scorecard.lift)
    rows, classes = sum(i.plan.values()), sum(1 for count in i.plan.values() if count)
    images = f"{counted(rows, 'synthetic image')} in {counted(classes, 'class', 'classes')}"
    reasons = i.verdict.reasons
    failed = f"{counted(len(reasons), 'figure')} failed" if reasons else "the gate said no"
    if not i.verdict.passed and i.verdict.enforced:
        return Headline("bad", f"Refused: nothing was published, because {failed}.", reasons, lift)
    kind = "good" if i.verdict.passed and lift_word(i.scorecard.lift) in ("lift", None) else "warn"
    if i.version is None:
        word = "Passed the gate" if i.verdict.passed else f"Not passed ({failed}), but the gate is switched off"
        return Headline(kind, f"{word}; not published yet: {images} planned.", reasons, lift)
    published = f"Published as version {i.version}: {images}"
    if not i.verdict.passed:
        return Headline("warn", f"{published}, although {failed}, since the gate is switched off.", reasons, lift)
    return Headline(kind, f"{published}.", reasons, lift)


def _tiles(i: ReportInputs) -> list[tuple[str, str, str]]:
    """(name, figure, what to compare it with): what a hurried reader takes along."""
    s = i.scorecard
    made = sum(i.plan.values())
    beside = f"beside {i.snapshot.rows.get('train', 0):,} real ones"
    tiles = [("Synthetic images", f"{made:,}", beside if i.version is not None else "planned" if made else "none made")]
    if s.lift is not None:
        tiles.append(("Lift", lift_value(s.lift), lift_reference(s.lift)))
    tiles += [
        ("FID" if s.features == "inception" else f"FD-{s.features}", decimal(s.fd),
         f"{decimal(s.fd_ratio)} times real images', equally many" if math.isfinite(s.fd_ratio) else distance_reference(s)),
        ("Coverage", decimal(s.coverage), f"N = {s.samples:,}"),
        ("Label agreement", percent(s.agreement), f"on real images: {percent(s.judge_accuracy)}"),
        ("Memorised", percent(s.memorised), "near copies of training images"),
    ]
    return tiles


def _loading(i: ReportInputs) -> tuple[Loading, ...]:
    where = f"{public_url(i.config.dataset_url)}/versions/{i.version or 'VERSION'}"
    return how_to_load(i.config.sample.format, where)


# ---- classes ----


@dataclass(frozen=True)
class Made:
    """A row of the class table; widths in percent of the widest bar."""

    real: int
    synthetic: int
    real_width: float
    synthetic_width: float

    @property
    def total(self) -> int:
        return self.real + self.synthetic


def _made(i: ReportInputs) -> dict[str, Made]:
    train = i.snapshot.rows_per_class.get("train", {})
    counts = {name: (train.get(name, 0), i.plan.get(name, 0)) for name in i.snapshot.classes}
    widest = max((real + synthetic for real, synthetic in counts.values()), default=0) or 1
    return {name: Made(r, f, round(100 * r / widest, 2), round(100 * f / widest, 2)) for name, (r, f) in counts.items()}


@dataclass(frozen=True)
class PerClass:
    """A class's scores, as text."""

    coverage: str
    agreement: str
    diversity: str
    recall_before: str
    recall_after: str
    change: str
    worse: bool


def _per_class(i: ReportInputs) -> dict[str, PerClass]:
    s, lift = i.scorecard, i.scorecard.lift
    rows = {}
    for name in i.snapshot.classes:
        before = lift.recall_baseline.get(name, math.nan) if lift else math.nan
        after = lift.recall_synthetic.get(name, math.nan) if lift else math.nan
        rows[name] = PerClass(
            decimal(s.coverage_per_class.get(name, math.nan)), percent(s.agreement_per_class.get(name, math.nan)),
            decimal(s.diversity_per_class.get(name, math.nan)), percent(before), percent(after),
            points(100 * (after - before)), round(100 * (after - before), 2) < 0,
        )
    return rows


# ---- pictures ----


@dataclass(frozen=True)
class Strips:
    """One class in the grid section; None where there is no image."""

    name: str
    real: Strip | None
    synthetic: Strip | None

    @property
    def bytes(self) -> int:
        """Of both PNGs."""
        return sum(len(strip.png) for strip in (self.real, self.synthetic) if strip)


@dataclass(frozen=True)
class Grids:
    """Rows shown at once, rows folded away, and how many classes had no room left in the file."""

    shown: tuple[Strips, ...]
    folded: tuple[Strips, ...]
    left_out: int
    pixelated: bool


def _grids(i: ReportInputs, shown: Sequence[str], folded: Sequence[str]) -> Grids:
    """As many columns as fit for the shown classes, then as many folded classes as still fit."""
    most = max((len(images) for grid in (i.real_grid, i.fake_grid) for images in grid), default=0)
    columns, front, back = most, [], []
    for columns in sorted({min(most, c) for c in (most, 8, 6, 4)}, reverse=True):
        front = [_strips(i, name, columns) for name in shown]
        if sum(row.bytes for row in front) <= MAX_GRID_BYTES:
            break
    budget = MAX_GRID_BYTES - sum(row.bytes for row in front)
    for name in folded:
        row = _strips(i, name, columns)
        budget -= row.bytes
        if budget < 0:
            break
        back.append(row)
    shows = any(row.bytes for row in front)
    width = per_line(columns, i.snapshot.resolution) * (min(i.snapshot.resolution, MAX_IMAGE_PX) + 1)
    return Grids(tuple(front) if shows else (), tuple(back), len(folded) - len(back), width <= MAX_LINE_PX)


def _strips(i: ReportInputs, name: str, columns: int) -> Strips:
    label = i.snapshot.classes.index(name)
    return Strips(name, *(strip(grid[label][:columns] if label < len(grid) else (), columns)
                          for grid in (i.real_grid, i.fake_grid)))


def _progress(grids: Sequence[tuple[float, bytes]]) -> tuple[Picture, ...]:
    """Evenly spaced from the first to the last, as many as fit (two at least, cut in height if need be)."""
    grids = sorted(grids, key=lambda g: g[0])
    for count in range(min(PROGRESS_GRIDS, len(grids)), 0, -1):
        last = len(grids) - 1
        chosen = [grids[round(n * last / (count - 1))] for n in range(count)] if count > 1 else [grids[last]]
        pictures = [(kimg, cut(png, MAX_PROGRESS_BYTES // 2 if count <= 2 else None)) for kimg, png in chosen]
        if count <= 2 or sum(len(png) for _, png in pictures) <= MAX_PROGRESS_BYTES:
            return tuple(picture(png, f"{kimg:,.4g} kimg", shown_px=MAX_LINE_PX) for kimg, png in pictures)
    return ()


def _nearest(png: bytes | None) -> Picture | None:
    return picture(cut(png, MAX_NEAREST_BYTES), "", shown_px=2 * MAX_LINE_PX) if png else None


# ---- curves ----


@dataclass(frozen=True)
class Curve:
    """A chart with its title and a legend of (CSS class, text)."""

    title: str
    legend: tuple[tuple[str, str], ...]
    svg: Markup
    note: str = ""


def _curves(i: ReportInputs) -> tuple[Curve, ...]:
    rows = [row for row in i.metrics if math.isfinite(number(row.get("kimg")))]
    kimg = [number(row["kimg"]) for row in rows]

    def series(key: str, name: str, kind: str) -> charts.Series:
        told = [(k, number(row[key])) for k, row in zip(kimg, rows) if key in row]   # other lines tell other things
        return charts.Series(name, [k for k, _ in told], [v for _, v in told], kind, band=True)

    def curve(title: str, keys: dict[str, str], y_label: str, note: str = "", **options: Any) -> Curve:
        kinds = ("s1", "s2") if len(keys) > 1 else ("s2",)
        drawn = [series(key, name, kind) for (key, name), kind in zip(keys.items(), kinds)]
        kept = [s for s in drawn if any(math.isfinite(y) for y in s.y)]
        svg = charts.line_chart(kept, label=title, x_label="thousand images seen (kimg)", y_label=y_label, **options)
        return Curve(title, tuple((s.kind, s.name) for s in kept), svg, note)

    both = {"g": "generator", "d": "discriminator"}
    found = (
        curve("Losses", {f"loss_{k}": name for k, name in both.items()}, "loss",
              "They balance each other: neither falling to 0 nor running away is what matters."),
        curve("Gradient norms", {f"grad_norm_{k}": name for k, name in both.items()}, "norm, log scale", log=True,
              note="A norm that explodes or dies away announces a broken training."),
        curve("Speed", {"images_per_s": "images per second"}, "images / s", from_zero=True),
        _diversity_curve(i, rows, kimg),
    )
    return tuple(c for c in found if c.svg)


def _diversity_curve(i: ReportInputs, rows: Sequence[Mapping[str, Any]], kimg: Sequence[float]) -> Curve:
    """All classes faintly, the one that ends lowest strongly."""
    measured = [(k, per_class) for k, row in zip(kimg, rows) if (per_class := _diversities(i, row))]
    names = list(dict.fromkeys(name for _, per_class in measured for name in per_class))
    lines = {name: [number(per_class.get(name)) for _, per_class in measured] for name in names}
    last = {name: next((v for v in reversed(values) if math.isfinite(v)), math.nan) for name, values in lines.items()}
    ranked = sorted((name for name in names if math.isfinite(last[name])), key=lambda name: last[name])
    if not ranked:
        return Curve("Diversity", (), Markup(""))
    x = [k for k, _ in measured]
    others = ranked[1:1 + 2 * SHOWN_EACH]
    drawn = [charts.Series(name, x, lines[name], "faint") for name in others]
    drawn.append(charts.Series(ranked[0], x, lines[ranked[0]], "s1"))
    limit = i.config.gate.min_diversity
    svg = charts.line_chart(
        drawn, label="Diversity per class", x_label="thousand images seen (kimg)", y_label="variety, real = 1",
        from_zero=True, references=[charts.Reference(1.0, "as varied as real"),
                                    *([charts.Reference(limit, "gate")] if limit else [])],
    )
    legend = (("s1", f"lowest at the end: {ranked[0]}"), *([("faint", "other classes")] if others else []))
    return Curve("Diversity of each class", legend, svg, "A line that falls to 0 is a class collapsing to one picture.")


def _diversities(i: ReportInputs, row: Mapping[str, Any]) -> dict[str, Any]:
    """Class name → diversity of one line of metrics, which knows classes by their numbers."""
    per_class = row.get("diversity_per_class")
    if not isinstance(per_class, Mapping):
        return {}
    names = {str(label): name for label, name in enumerate(i.snapshot.classes)}
    return {names.get(str(label), str(label)): value for label, value in per_class.items()}


# ---- time ----


def _timings(timings: Mapping[str, float]) -> tuple[tuple[str, str, float], ...]:
    """(stage, duration, width in percent of the longest)."""
    longest = max(timings.values(), default=0.0) or 1.0
    return tuple((stage, duration(seconds), round(100 * seconds / longest, 2)) for stage, seconds in timings.items())
