"""What the generator's images are worth: distance, coverage, agreement, variety, memorisation, lift.

Who may see what: the feature extractor (which is the filter's model too) trains on the train split alone, the judge on
train and val, nobody on test. The two differ in architecture, width and seed. Every figure is read against the same
figure of unseen real images, the val split, in the samples' place.
"""

import hashlib
import json
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from gan.checkpoint import load_generator
from gan.classical import ClassicalAugment
from gan.sampling import generate
from pipeline import keys
from pipeline.config import Config
from pipeline.errors import ConfigError, CorruptShard, MissingObject
from pipeline.evaluation.data import Splits, load
from pipeline.evaluation.networks import Networks, device_of, fid_network, put_filter, train_networks
from pipeline.evaluation.samples import passing
from pipeline.evaluation.scores import measure
from pipeline.filtering import NO_FILTER, WITHOUT_DISCRIMINATOR, Filter, Screen
from pipeline.leakage import check_trained_on
from pipeline.lift import Bench, Draw, Keep, Rows, Schedule, measure_lift
from pipeline.lift.trial import Mix
from pipeline.lift.verdict import published as for_readers
from pipeline.plan import makes_every_class, rows_to_make
from pipeline.progress import Progress
from pipeline.records import Checkpoint, LiftFigure, Scorecard, Snapshot
from pipeline.side_by_side import all_side_by_side
from pipeline.store import Store

FORMAT = 11                                          # one more whenever the figures' definitions change


def evaluate(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Store, progress: Progress) -> Scorecard:
    """Measures the checkpoint's generator, or returns the scorecard that the run folder has for the same inputs.

    Puts the nearest pairs' PNG, the filter's model, the rows of the lift trial as they finish, and last the scorecard.

    Raises:
        ConfigError: features that can't be had here.
        CorruptShard: the checkpoint is not the one that was trained.
        MissingObject: the run folder lacks data or checkpoint.
    """
    inputs = _inputs(config, snapshot, checkpoint)
    done = _finished(run, inputs)
    if done is not None:
        progress.note("evaluation was finished before")
        return done
    began = time.perf_counter()
    fid = fid_network(config.evaluate.inception_weights) if config.evaluate.features == "inception" else None
    splits = load(run, len(snapshot.classes))
    draw, discriminator = _generator(config, run, checkpoint, splits.train)
    progress.note("training the feature extractor and the judge")
    networks = train_networks(config, splits, len(snapshot.classes))
    check_trained_on(networks.trained_on, splits.train.images, splits.train.labels, "the feature extractor")
    if fid is not None:
        networks = replace(networks, extractor=fid, features="inception")
    put_filter(run, networks)
    published = passing(draw, _keep(config, splits, networks, discriminator, len(snapshot.classes)))
    notes: list[str] = []
    card, = all_side_by_side(                        # one thread: on a busy machine several wait for one another
        [lambda stop: measure(config, snapshot, splits, published, networks, run, progress, notes)], 1)
    lift = _lift(config, snapshot, splits, draw, discriminator, networks, card.memorised, run, progress,
                 _row_inputs(config, snapshot, checkpoint))
    card = replace(card, lift=lift, notes=tuple(notes), seconds=round(time.perf_counter() - began, 3))
    run.put_json(keys.SCORECARD, {**card.to_json(), "inputs": inputs})
    return card


def _inputs(config: Config, snapshot: Snapshot, checkpoint: Checkpoint) -> str:
    """Fingerprint of all that decides the scorecard."""
    return _fingerprint(config, snapshot, checkpoint, config.digest("evaluate"))


def _row_inputs(config: Config, snapshot: Snapshot, checkpoint: Checkpoint) -> str:
    """The same for a row of the lift trial, which the number of rows doesn't change."""
    asked = config.evaluate.model_dump(mode="json", exclude={"lift": {"seeds"}})
    return _fingerprint(config, snapshot, checkpoint, json.dumps(asked, sort_keys=True))


def _fingerprint(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, evaluation: str) -> str:
    content = [FORMAT, checkpoint.sha256, snapshot.fingerprint, config.seed, evaluation,
               config.train.augment.model_dump(), Filter(**config.sample.filter).asked, _makes_every_class(config, snapshot),
               config.sample.truncation, _planned(config, snapshot)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _makes_every_class(config: Config, snapshot: Snapshot) -> bool:
    return makes_every_class(snapshot.rows_per_class["train"], snapshot.classes, config.sample.target)


def _planned(config: Config, snapshot: Snapshot) -> tuple[int, ...] | None:
    """Rows of each class that will be published, as far as the lift trial asks for them: a target above that costs no new trial.

    None where there is no trial, or nothing can be planned, which the plan itself will say.
    """
    asked, counts = config.evaluate.lift, snapshot.rows_per_class["train"]
    if asked is None:
        return None
    try:
        rows = rows_to_make(counts, snapshot.classes, config.sample.target)
    except ConfigError:
        return None
    real = np.array([counts.get(name, 0) for name in snapshot.classes])
    mixes = (Mix(max(asked.ratios), even=even, distinct=asked.distinct) for even in (False, True))
    most = np.maximum(*(mix.rows(real) for mix in mixes)).tolist()
    return tuple(min(rows[name], most[c]) for c, name in enumerate(snapshot.classes))


def _finished(run: Store, inputs: str) -> Scorecard | None:
    try:
        content = run.get_json(keys.SCORECARD)
    except MissingObject:
        return None
    return Scorecard.from_json(content) if content.get("inputs") == inputs else None


def _generator(config: Config, run: Store, checkpoint: Checkpoint, train: Rows) -> tuple[Draw, nn.Module | None]:
    """(the generator, its discriminator where it has one)."""
    data = run.get(checkpoint.key)
    if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
        raise CorruptShard(f"{run.where(checkpoint.key)} is not the checkpoint that was trained; train again under "
                           "another --run-id")
    loaded = load_generator(data)
    check_trained_on(loaded.meta["data"], train.images, train.labels, "the generator")
    discriminator = None if loaded.spec.family in WITHOUT_DISCRIMINATOR else loaded.discriminator
    net = loaded.net.to(device_of(config))

    def draw(labels: np.ndarray, latents: np.ndarray) -> torch.Tensor:
        return generate(net, torch.from_numpy(labels), latents, truncation=config.sample.truncation)

    return draw, discriminator


def _keep(config: Config, splits: Splits, networks: Networks, discriminator: nn.Module | None, classes: int) -> Keep | None:
    """What `sample.filter` lets through; None where nothing is asked, or there is no classifier to ask, which sampling will say."""
    wanted = Filter(**config.sample.filter)
    if wanted == NO_FILTER or networks.filter is None:
        return None
    train, val = ((rows.images, rows.labels) for rows in (splits.train, splits.val))
    return Screen.fitted(networks.filter, train, val, classes, discriminator).keep(wanted)


def _lift(
    config: Config, snapshot: Snapshot, splits: Splits, draw: Draw, discriminator: nn.Module | None, networks: Networks,
    memorised: float, run: Store, progress: Progress, inputs: str,
) -> LiftFigure | None:
    """The lift figure, of rows filtered as those to be published; None when the config asks for none."""
    asked = config.evaluate.lift
    if asked is None:
        return None
    progress.note("measuring lift")
    augment = ClassicalAugment.allowed(flip=config.train.augment.flip, color=config.train.augment.color)
    schedule = Schedule.for_lift(len(splits.train), snapshot.channels, asked.steps)
    bench = Bench(splits.train, splits.val, splits.test, splits.val, snapshot.classes, augment, schedule, device_of(config),
                  _planned(config, snapshot))
    figure = measure_lift(
        asked, bench, draw, config.seed, progress, model=networks.filter, discriminator=discriminator,
        published=Filter(**config.sample.filter), even=_makes_every_class(config, snapshot), memorised=memorised, run=run, inputs=inputs,
    )
    run.put_json(keys.LIFT, {"inputs": inputs, **for_readers(figure)})
    return figure
