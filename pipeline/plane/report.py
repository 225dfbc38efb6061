"""The report, dataset card and Croissant of points on the plane."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from gan.mixtures import Mixture
from gan.plane import MixtureRun
from pipeline import keys
from pipeline.config import Config
from pipeline.documents import charts
from pipeline.documents.charts import Reference, Series
from pipeline.documents.figures import Figure, decimal, percent
from pipeline.documents.page import render_page
from pipeline.plane.density import contours, levels_of, smoothed
from pipeline.plane.scorecard import PlaneScorecard
from pipeline.records import Verdict
from pipeline.redaction import public_config, public_url
from pipeline.store import json_bytes

SCATTERED, SMOOTHED = 2500, 40_000
MODE_LIMITS = (-5.0, 5.0)                            # deviations shown around a mode's mean
LOG_4 = math.log(4)


def render(config: Config, scorecard: PlaneScorecard, verdict: Verdict, trained: Sequence[MixtureRun], run_id: str,
           version: str | None = None, created: str = "") -> bytes:
    """The page, one HTML file. Pure: the same inputs give the same page."""
    run = trained[0]
    page = render_page(
        "plane.html.j2", config=config, s=scorecard, verdict=verdict, run_id=run_id, version=version, created=created,
        headline=_headline(verdict, version, config),
        scores=figures(scorecard, config), pictures=_pictures(run), curves=_curves(run, scorecard), ceiling=percent(1 - math.exp(-4.5), 2),
        settings=yaml.safe_dump(public_config(config), sort_keys=False, allow_unicode=True, width=100),
        summary={name: (mean, error) for name, (mean, error) in scorecard.summary.items()}, points=run.points,
    )
    return page.encode()


def _headline(verdict: Verdict, version: str | None, config: Config) -> tuple[str, str]:
    """(colour, sentence)."""
    if not verdict.passed and verdict.enforced:
        return "bad", "Refused: nothing was published."
    if not verdict.passed:
        return "warn", "Published although the gate said no, because it was switched off." if version else "The gate said no."
    return "good", f"Passed and published as {version}." if version else "Passed; nothing is published yet."


def figures(s: PlaneScorecard, config: Config) -> tuple[Figure, ...]:
    """Every figure of the scorecard, with what it is read against and what it means."""
    n, gate = f"{s.samples:,}", config.gate
    share, narrowest = s.modes / s.of, min(s.spread)
    asked, varied = gate.min_coverage, gate.min_diversity
    drawn = s.as_drawn
    without = () if not drawn else (
        Figure("As drawn", f"{drawn['modes']:.0f} modes, {percent(drawn['high_quality'], 2)}, {decimal(drawn['reverse_kl'], 4)}, "
               f"narrowest {decimal(drawn['narrowest'])}", "", None, None, "2,500",
               "Modes, high quality, reverse KL and spread of every draw. What is published was drawn again until the discriminator "
               "let it pass."),)
    return (
        Figure("Modes", f"{s.modes} of {s.of}", f"{s.of}", None if asked is None else f"at least {asked:g} of them",
               None if asked is None else share >= asked, n, "Gaussians within three deviations of whose mean a point lies."),
        Figure("High quality", percent(s.high_quality, 2), f"true points {percent(s.high_quality_real, 2)}", None, None, n,
               "Share of the points within three deviations of the nearest mean. The rest lie strewn between the modes."),
        Figure("Reverse KL", decimal(s.reverse_kl, 4), f"true points {decimal(s.reverse_kl_real, 4)}", None, None, n,
               "KL divergence in nats from the true weights of the modes, each point counted to its nearest. 0: all equally often."),
        Figure("Spread within a mode", f"{decimal(narrowest)} … {decimal(max(s.spread))}", "1",
               None if varied is None else f"at least {varied:g}", None if varied is None else narrowest >= varied, n,
               "Deviation of a mode's points over the true one, least and most. 0: the mode has shrunk to a point or is missing."),
        Figure("Fresh discriminator's loss", decimal(s.fresh_loss, 3), f"true points {decimal(s.fresh_loss_real, 3)}, log 4 = 1.386",
               None, None, "20,000", "Summed loss, on unseen points, of a discriminator fitted after training. Below log 4 it can tell "
               "generated points from true ones."),
        Figure("Value function", decimal(s.value, 3), "−log 4 = −1.386", None, None, "2,000",
               "E log D(x) + E log(1 − D(G(z))) by training's own discriminator at its end. Above −log 4: it can tell them apart."),
        *without,
    )


# ---- pictures ---------------------------------------------------------------------------------------------------


def _pictures(run: MixtureRun) -> list[tuple[str, str, Markup, Markup]]:
    """(title, caption, real, generated) each."""
    mixture = run.mixture
    real, made = _array(mixture.sample(SMOOTHED, 5)), _array(run.sample(SMOOTHED, 2 * run.seed + 5))
    reach = float(np.abs(mixture.means).max() + max(6 * mixture.deviation, 0.25 * mixture.scale))
    whole = (-reach, reach)
    scattered = [charts.plane(_pairs(points[:SCATTERED]), label=f"{name} points", limits=whole, kind=kind)
                 for points, name, kind in ((real, "true", "s0"), (made, "generated", "s1"))]
    drawn = [
        ("Points", f"{SCATTERED:,} points each.", scattered[0], scattered[1]),
        ("Density", f"Contours of {SMOOTHED:,} points each, smoothed alike, at the same levels.",
         *_contoured(real, made, whole, "x", "y")),
        ("All modes laid on top of one another",
         "Each point relative to its nearest mean, in true deviations: circles when the shape is right.",
         *_contoured(_relative(real, mixture), _relative(made, mixture), MODE_LIMITS, "x, deviations", "y, deviations")),
    ]
    return drawn[: 3 if len(mixture.means) > 2 else 2]


def _contoured(real: np.ndarray, made: np.ndarray, limits: tuple[float, float], x_label: str, y_label: str) -> tuple[Markup, Markup]:
    """Contours of both, at levels that the true points' density sets."""
    densities = smoothed(real, limits), smoothed(made, limits)
    levels = levels_of(densities[0])
    left, right = (
        charts.plane(lines=contours(density, levels, limits), label=f"density of {name} points", limits=limits, kind=kind,
                     x_label=x_label, y_label=y_label)
        for density, name, kind in zip(densities, ("true", "generated"), ("s0", "s1")))
    return left, right


def _relative(points: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Points (n, 2) from their nearest mean, in deviations."""
    nearest = ((points[:, None] - mixture.means) ** 2).sum(-1).argmin(1)
    relative: np.ndarray = (points - mixture.means[nearest]) / mixture.deviation
    return relative


def _array(points: Any) -> np.ndarray:
    values: np.ndarray = points.numpy().astype(np.float64)
    return values


def _pairs(points: np.ndarray) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _curves(run: MixtureRun, s: PlaneScorecard) -> list[tuple[str, str, Markup]]:
    """(title, caption, chart) each, over thousands of points shown."""
    x = [look.points / 1000 for look in run.curve]

    def drawn(names: Mapping[str, Sequence[float]], y_label: str, references: Sequence[Reference]) -> Markup:
        series = [Series(name, x, list(values), f"s{i}") for i, (name, values) in enumerate(names.items())]
        return charts.line_chart(series, label=y_label, x_label="thousand points shown", y_label=y_label, references=references)

    return [
        ("Value function", "By training's own discriminator, its logit calibrated. It can tell nothing at −log 4.",
         drawn({"value": [look.value for look in run.curve]}, "E log D(x) + E log(1 − D(G(z)))", [Reference(-LOG_4, "−log 4")])),
        ("High quality", "Share of generated points within three deviations of a mean.",
         drawn({"high quality": [look.high_quality for look in run.curve]}, "share", [Reference(1 - math.exp(-4.5), "true points")])),
        ("Losses", "Of the discriminator (blue) and the generator (orange), without penalties.",
         drawn({"D": [look.loss_d for look in run.curve], "G": [look.loss_g for look in run.curve]}, "loss", [])),
    ]


# ---- beside the data --------------------------------------------------------------------------------------------


def attachments(config: Config, scorecard: PlaneScorecard, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """README.md and croissant.json of a version."""
    from pipeline.documents.croissant import croissant

    return {keys.CARD: card(config, scorecard, manifest).encode(), keys.CROISSANT: json_bytes(croissant(manifest))}


def card(config: Config, s: PlaneScorecard, manifest: Mapping[str, Any]) -> str:
    """README.md of a version, with the YAML header that Hugging Face tools read."""
    header = {"pretty_name": f"{manifest['dataset']} (synthetic points)", "license": "unknown", "tags": ["synthetic", "ganmill", "gan"],
              "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}]}
    where = f"{public_url(config.dataset_url)}/versions/{manifest['version']}/data/*.parquet"
    rows = "\n".join(f"| {f.name} | {f.value} | {f.reference} | {f.n} | {f.meaning} |" for f in figures(s, config))
    verdict = manifest["verdict"]
    word = "The gate's thresholds were all met." if verdict["passed"] else \
        "**Published although the gate said no**, because it was switched off: " + " ".join(verdict["reasons"])
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"
        f"# {manifest['dataset']}: synthetic points\n\n"
        f"**Every point here is synthetic.** {manifest['rows']:,} points on the plane, made by a generative adversarial network "
        f"that learned the mixture `{s.variant}` of {s.of} Gaussians. The generator is unconditional: `label` is 0 for all.\n\n"
        f"## Verdict\n\n{word}\n\n## Scores\n\n| figure | value | read against | N | meaning |\n|---|---|---|---|---|\n{rows}\n\n"
        "## How to load\n\nColumns: x, y, label, uid, seed, synthetic.\n\n"
        f"```python\nimport polars\n\npoints = polars.read_parquet(\"{where}\")\n```\n\n"
        f"## Provenance\n\nVersion {manifest['version']}, created {manifest['created']}, run {manifest['run_id']}, "
        f"seed {manifest['seed']}, generator digest {manifest['generator']['digest']}. The same in machine-readable form: "
        "`manifest.json`, `croissant.json`; for people: `report.html`.\n"
    )
