"""The stages for points on the plane: prepare → train → evaluate → gate → plan → sample → publish, as in `pipeline.walk`.

Everything happens in this process: networks of some thousand weights need no cluster. Each stage leaves its record in the run's
folder and returns it from there when it is called again.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gan.errors import GanError
from gan.plane import Look, MixtureRecipe, MixtureRun, load_run, save_run, train_mixture
from pipeline import keys, seeds
from pipeline.config import Config
from pipeline.errors import ConfigError, MissingObject, RunMismatch, TrainingFailed
from pipeline.plan import make_plan, open_plan
from pipeline.plane import scorecard as measuring
from pipeline.plane.report import attachments, render
from pipeline.plane.scorecard import PlaneScorecard
from pipeline.plane.source import fingerprint, mixture_of
from pipeline.progress import Progress
from pipeline.records import Checkpoint, Receipt, Snapshot, Verdict, Version
from pipeline.runs import Run
from pipeline.side_by_side import one_thread
from pipeline.store import Store
from pipeline.walk import Planned, obey
from pipeline.wording import counted

MODEL = "plane"


def recipe_of(config: Config) -> tuple[MixtureRecipe, int]:
    """(how to train, how often) by the config's budget, batch size and options.

    Raises:
        ConfigError: an option that there is not, or out of range.
    """
    options = dict(config.train.options)
    runs = options.pop("runs", 1)
    if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= 100:
        raise ConfigError(f"train.options.runs: {runs!r}: how many trainings with other seeds to report, 1 to 100")
    known = {f.name for f in dataclasses.fields(MixtureRecipe)} - {"steps", "seconds"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"train.options: none is called {', '.join(unknown)}; for points there are runs, {', '.join(sorted(known))}")
    if config.train.batch_size is not None:
        options.setdefault("batch_size", config.train.batch_size)
    try:
        recipe = MixtureRecipe(**options)
        budget = config.train.budget
        if budget.minutes is not None:
            return dataclasses.replace(recipe, seconds=60 * budget.minutes), runs
        return dataclasses.replace(recipe, steps=max(1, round(1000 * (budget.kimg or 0) / recipe.points_a_step))), runs
    except (GanError, TypeError) as e:
        raise ConfigError(f"train.options: {e}") from e


def prepare(config: Config, run: Run, progress: Progress) -> Snapshot:
    """Names the mixture; its points are drawn as training goes on."""
    progress.stage("prepare")
    mixture, points = mixture_of(config), round(1000 * (config.train.budget.kimg or 0))
    where = fingerprint(config)
    snapshot = Snapshot(
        fingerprint=where, source_fingerprint=where, source_format="gaussians", source_url=None, classes=(mixture.name,),
        resolution=1, channels=2, rows_per_class={split: {mixture.name: n} for split, n in (
            ("train", max(1, points)), ("val", 0), ("test", config.evaluate.samples))}, official_test=False,
    )
    run.folder.put_json(keys.SNAPSHOT, snapshot.to_json())
    progress.note(f"{len(mixture.means)} Gaussians of deviation {mixture.deviation:g}; points are drawn as they are needed")
    return snapshot


def train(config: Config, run: Run, progress: Progress) -> Checkpoint:
    """Trains as often as asked; a training that was finished before is not repeated.

    Raises:
        TrainingFailed: the losses are not finite.
        RunMismatch: the run's folder holds generators of another config.
    """
    progress.stage("train")
    recipe, runs = recipe_of(config)
    digest = config.digest("train", "source", "seed")
    trained = [_trained(config, recipe, i, runs, run.folder, digest, progress) for i in range(runs)]
    first = trained[0]
    data = run.folder.get(_checkpoint_key(0))
    checkpoint = Checkpoint(
        key=_checkpoint_key(0), sha256=hashlib.sha256(data).hexdigest(), model=MODEL,
        preset=f"plane: two perceptrons, {recipe.loss} loss, R1 and R2", net=dataclasses.asdict(recipe),
        trained_kimg=first.points / 1000, images_per_s=first.points / max(first.seconds, 1e-9),
        seconds=sum(r.seconds for r in trained), config_digest=digest, train_fingerprint=fingerprint(config),
    )
    run.folder.put_json(keys.TRAINED, checkpoint.to_json())
    progress.note(f"{first.points / 1000:,.0f} thousand points in {first.seconds:.0f} s" + (f", {runs} trainings" if runs > 1 else ""))
    return checkpoint


def _checkpoint_key(index: int) -> str:
    return f"{keys.CHECKPOINTS}/training-{index:03d}.safetensors"


def _trained(config: Config, recipe: MixtureRecipe, index: int, of: int, folder: Store, digest: str, progress: Progress) -> MixtureRun:
    key, seed = _checkpoint_key(index), seeds.derive(config.seed, "plane", index) % 2**31
    try:
        done = load_run(folder.get(key))
    except MissingObject:
        pass
    except GanError as e:
        raise RunMismatch(f"{folder.where(key)}: {e}; give another --run-id") from e
    else:
        if (done.recipe, done.seed, done.mixture.name) != (recipe, seed, mixture_of(config).name):
            raise RunMismatch(f"{folder.where(key)} is of another config; give another --run-id")
        return done

    def on_look(t: float, look: Look) -> None:
        progress.update((index + t) / of, 1.0, kimg=look.points / 1000, loss_d=look.loss_d, loss_g=look.loss_g,
                        value=look.value, modes=float(look.modes), high_quality=look.high_quality)

    try:
        with one_thread():                           # of some thousand weights: two wait for one another, beside other work for long
            run = train_mixture(mixture_of(config), recipe, seed, on_look=on_look)
    except GanError as e:
        raise TrainingFailed(str(e)) from e
    folder.put(key, save_run(run))
    return run


def trainings(config: Config, folder: Store) -> list[MixtureRun]:
    """Every finished training of the run, in order."""
    return [load_run(folder.get(_checkpoint_key(i))) for i in range(recipe_of(config)[1])]


def evaluate(config: Config, run: Run, progress: Progress) -> PlaneScorecard:
    """Measures every training's generator, and the true mixture in its place."""
    progress.stage("evaluate")
    began = time.monotonic()
    with one_thread():
        scorecard = measuring.measure(trainings(config, run.folder), config.evaluate.samples, 0.0)
    measuring.check_finite(scorecard)
    scorecard = dataclasses.replace(scorecard, seconds=round(time.monotonic() - began, 3))
    run.folder.put_json(keys.SCORECARD, scorecard.to_json())
    progress.note(
        f"{scorecard.modes} of {scorecard.of} modes, high quality {scorecard.high_quality:.1%} (true points "
        f"{scorecard.high_quality_real:.1%}), reverse KL {scorecard.reverse_kl:.4f}, fresh discriminator {scorecard.fresh_loss:.3f} "
        "(log 4 = 1.386)")
    return scorecard


def gate(config: Config, scorecard: PlaneScorecard, run: Run, progress: Progress) -> Verdict:
    """Lets the thresholds decide.

    Raises:
        GateRefused: after the report, which says why, was written into the run's folder.
    """
    progress.stage("gate")
    verdict = measuring.decide(config.gate, scorecard)
    return obey(verdict, run, progress, lambda: _page(config, scorecard, verdict, run))


def plan(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Run, progress: Progress) -> Planned:
    """Works out the shards and the version's name; the run's own plan if it has one already."""
    progress.stage("plan")
    shards, record = open_plan(config, snapshot, checkpoint, run.folder, run.dataset)
    progress.note(f"{shards.rows:,} points in {counted(len(shards), 'shard')} of {record.version}")
    return Planned(shards, record)


def sample(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, planned: Planned, run: Run, progress: Progress) -> Sequence[Receipt]:
    """Makes the shards that have no receipt yet, in this process."""
    from pipeline import fanout

    progress.stage("sample")
    here = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "inline"})})
    receipts = fanout.sample(here, snapshot, checkpoint, planned.shards, run.folder, run.dataset, planned.record.version, progress,
                             load=load_points)
    progress.note(f"{sum(r.rows for r in receipts):,} points made")
    return receipts


def load_points(data: bytes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The generator in a checkpoint of ours: (labels, seeds) → points float32 (n, 2)."""
    run = load_run(data)

    def points(labels: np.ndarray, row_seeds: np.ndarray) -> np.ndarray:
        made: np.ndarray = run.minted(row_seeds).numpy()
        return made

    return points


def publish(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: PlaneScorecard, verdict: Verdict,
            planned: Planned, receipts: Sequence[Receipt], run: Run, progress: Progress) -> Version:
    """Writes card, Croissant, report and manifest, and makes the version visible."""
    from pipeline import publication

    progress.stage("publish")

    def beside(manifest: dict[str, Any]) -> Mapping[str, bytes]:
        page = render(config, scorecard, verdict, trainings(config, run.folder), run.run_id, manifest["version"], manifest["created"])
        run.folder.put(keys.REPORT, page)
        return {keys.REPORT: page, **attachments(config, scorecard, manifest)}

    version = publication.commit(config, snapshot, checkpoint, scorecard, verdict, planned.shards, receipts, run.dataset,
                                 run.run_id, planned.record.version, beside, rows_are="points")
    progress.note(f"{version.name} is visible: {version.rows:,} points in {counted(version.shards, 'object')}")
    return version


def report(config: Config, scorecard: PlaneScorecard, verdict: Verdict, run: Run, progress: Progress) -> str:
    """Writes the report into the run's folder; its URL."""
    progress.stage("report")
    run.folder.put(keys.REPORT, _page(config, scorecard, verdict, run))
    return run.folder.where(keys.REPORT)


def _page(config: Config, scorecard: PlaneScorecard, verdict: Verdict, run: Run) -> bytes:
    return render(config, scorecard, verdict, trainings(config, run.folder), run.run_id)


def expected(config: Config) -> dict[str, Any]:
    """What a run would do, for `validate`: points to train on, rows and shards.

    Raises:
        ConfigError: the budget, options or target can't be had for points.
    """
    recipe, runs = recipe_of(config)
    name = mixture_of(config).name
    counts = {name: max(1, round(1000 * (config.train.budget.kimg or 0)))}
    shards = make_plan(counts, (name,), config.sample.target, config.sample.rows_per_shard)
    return {"mixture": name, "modes": len(mixture_of(config).means), "runs": runs, "rows": shards.rows, "shards": len(shards),
            "steps": None if recipe.seconds else recipe.steps, "seconds": recipe.seconds}
