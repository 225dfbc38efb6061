"""What the generator's images are worth: distance, coverage, agreement, variety, memorisation, lift.

Who may see what: the feature extractor (which is the filter's model too) trains on the train split alone, the judge on
train and val, nobody on test. The two differ in architecture, width and seed. Every figure is read against the same
figure of unseen real images, the val split, in the samples' place.
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan import inception
from gan.checkpoint import load_generator
from gan.classical import ClassicalAugment
from gan.classifier import (
    Architecture,
    Classifier,
    ClassifierSpec,
    build_classifier,
    embed,
    predict,
    save_classifier,
    standardise,
    train_classifier,
)
from gan.errors import BadWeights
from gan.inception import Inception
from gan.metrics.agreement import agreement, balanced_accuracy
from gan.metrics.confidence import inception_like_score
from gan.metrics.diversity import diversity
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.kernel import kernel_distance
from gan.metrics.manifold import Manifold, manifold, neighbourhood_size
from gan.metrics.memorisation import Memorisation, memorisation
from gan.sampling import generate
from pipeline import keys
from pipeline.cluster import local_cpus, local_gpus
from pipeline.config import Config
from pipeline.errors import ConfigError, CorruptShard, MissingObject
from pipeline.filtering import WITHOUT_DISCRIMINATOR, Filter
from pipeline.grids import tile_grid
from pipeline.leakage import check_trained_on, rows_digest
from pipeline.lift import Bench, Draw, Rows, Schedule, measure_lift, only_known
from pipeline.lift.remote import cluster_is_larger
from pipeline.lift.verdict import summary
from pipeline.plan import makes_every_class
from pipeline.prepare import load_split
from pipeline.progress import Progress
from pipeline.records import Checkpoint, LiftFigure, Scorecard, Snapshot
from pipeline.seeds import derive, row_seeds
from pipeline.side_by_side import Stop, all_side_by_side
from pipeline.store import Store
from pipeline.wording import counted

FORMAT = 5                                           # one more whenever the figures' definitions change
LEAST_PER_CLASS = 50                                 # samples of a class, however rare it is in the test images
MOST_REAL = 10_000                                   # test images that distances and neighbourhoods are taken of
MOST_KERNEL = 5_000                                  # rows a side of the kernel distance, which costs their product
FEW_TEST_IMAGES = 10                                 # of a class: fewer, and its figures get a note
PAIRS = 20
CHUNK = 1024                                         # generated images in memory at a time
# (architecture, width, length of the training against a lift trial's); the judge differs in more than its seed
EXTRACTOR: tuple[Architecture, int, float] = ("conv", 16, 1.5)
JUDGES: dict[int, tuple[Architecture, int, float]] = {1: ("conv", 24, 1.0), 3: ("residual", 16, 0.5)}


@dataclass(frozen=True)
class Splits:
    """The prepared images in memory; val and test without classes that train lacks."""

    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Networks:
    """Who looks at the images."""

    extractor: Classifier | Inception
    judge: Classifier | None                         # None: one class only, nothing to judge
    filter: Classifier | None                        # for `pipeline.filtering`; it and the extractor know train alone
    features: str                                    # domain | random | inception
    trained_on: str | None                           # `rows_digest` of what extractor or filter learnt from


@dataclass(frozen=True)
class Seen:
    """A set of images as features float32 (n, 128) of the extractor, with labels int64 (n,)."""

    features: Tensor
    labels: Tensor

    def of(self, label: int) -> Tensor:
        """The features of one class."""
        return self.features[self.labels == label]

    def take(self, rows: Tensor) -> "Seen":
        """The rows given by number or mask."""
        return Seen(self.features[rows], self.labels[rows])


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
    splits = _load(run, len(snapshot.classes))
    draw, discriminator = _generator(config, run, checkpoint, splits.train)
    progress.note("training the feature extractor and the judge")
    networks = train_networks(config, splits, len(snapshot.classes))
    check_trained_on(networks.trained_on, splits.train.images, splits.train.labels, "the feature extractor")
    if fid is not None:
        networks = replace(networks, extractor=fid, features="inception")
    _put_filter(run, networks)
    notes: list[str] = []
    card, = all_side_by_side(                        # one thread: on a busy machine several wait for one another
        [lambda stop: _measure(config, snapshot, splits, draw, networks, run, progress, notes)], 1)
    lift = _lift(config, snapshot, splits, draw, discriminator, networks, card.memorised, run, progress, inputs)
    card = replace(card, lift=lift, notes=tuple(notes), seconds=round(time.perf_counter() - began, 3))
    run.put_json(keys.SCORECARD, {**card.to_json(), "inputs": inputs})
    return card


def _inputs(config: Config, snapshot: Snapshot, checkpoint: Checkpoint) -> str:
    """Fingerprint of all that decides the scorecard."""
    content = [FORMAT, checkpoint.sha256, snapshot.fingerprint, config.seed, config.digest("evaluate"),
               config.train.augment.model_dump(), Filter(**config.sample.filter).asked, _makes_every_class(config, snapshot),
               config.sample.truncation]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _makes_every_class(config: Config, snapshot: Snapshot) -> bool:
    return makes_every_class(snapshot.rows_per_class["train"], snapshot.classes, config.sample.target)


def _finished(run: Store, inputs: str) -> Scorecard | None:
    try:
        content = run.get_json(keys.SCORECARD)
    except MissingObject:
        return None
    return Scorecard.from_json(content) if content.get("inputs") == inputs else None


def _load(run: Store, classes: int) -> Splits:
    rows = []
    for name in ("train", "val", "test"):
        split = load_split(run, name)
        rows.append(Rows(torch.from_numpy(split.images), torch.from_numpy(split.labels)))
    train, val, test = rows
    return Splits(train, only_known(val, train, classes), only_known(test, train, classes))


def _device(config: Config) -> str:
    """Where this process computes: on a GPU if the training was given GPUs, one is here, and no cluster will share the work."""
    return "cuda" if config.train.gpus_per_worker and local_gpus() and not cluster_is_larger() else "cpu"


def _generator(config: Config, run: Store, checkpoint: Checkpoint, train: Rows) -> tuple[Draw, nn.Module | None]:
    """(the generator, its discriminator where it has one)."""
    data = run.get(checkpoint.key)
    if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
        raise CorruptShard(f"{run.where(checkpoint.key)} is not the checkpoint that was trained; train again under "
                           "another --run-id")
    loaded = load_generator(data)
    check_trained_on(loaded.meta["data"], train.images, train.labels, "the generator")
    discriminator = None if loaded.spec.family in WITHOUT_DISCRIMINATOR else loaded.discriminator

    net = loaded.net.to(_device(config))

    def draw(labels: np.ndarray, latents: np.ndarray) -> torch.Tensor:
        return generate(net, torch.from_numpy(labels), latents, truncation=config.sample.truncation)

    return draw, discriminator


# ---- the networks ----


def train_networks(config: Config, splits: Splits, classes: int) -> Networks:
    """The extractor and filter (train split) and the judge (train and val), side by side, one thread each."""
    augment = ClassicalAugment.allowed(flip=config.train.augment.flip, color=config.train.augment.color)
    channels = splits.train.images.shape[1]
    several = len(torch.unique(splits.train.labels)) > 1
    device = _device(config)

    def train(
        name: str, rows: Rows, architecture: Architecture, width: int, share: float, stop: Stop
    ) -> tuple[Classifier, str]:
        schedule = Schedule.for_data(len(rows), channels)
        net = train_classifier(
            rows.images.to(device), rows.labels.to(device), classes, steps=max(1, round(schedule.steps * share)), balanced=True,
            batch_size=schedule.batch_size, seed=derive(config.seed, "evaluate", name), width=width,
            architecture=architecture, augment=augment, on_step=stop.check,
        )
        return net, rows_digest(rows.images, rows.labels)

    jobs = []
    if several:                                      # the longer job first
        architecture, width, share = JUDGES[channels]
        both = splits.train.joined(splits.val)
        jobs.append(lambda stop: train("judge", both, architecture, width, share, stop))
        jobs.append(lambda stop: train("extractor", splits.train, *EXTRACTOR, stop))
    trained = all_side_by_side(jobs, local_cpus() if device == "cpu" else 1)
    if not several:
        return Networks(_random_features(splits.train, classes), None, None, "random", None)
    (judge, _), (domain, seen) = trained
    if config.evaluate.features == "domain":
        return Networks(domain, judge, domain, "domain", seen)
    return Networks(_random_features(splits.train, classes), judge, domain, "random", seen)


def _random_features(train: Rows, classes: int) -> Classifier:
    """A network with weights of a fixed seed that never learnt anything."""
    _, channels, resolution, _ = train.images.shape
    net = build_classifier(ClassifierSpec("conv", resolution, channels, classes, 32), seed=0)
    standardise(net, train.images)
    return net.eval()


def fid_network(path: str | None) -> Inception:
    """The FID network with the weights of a file, or with those that are fetched once to torch's own place for downloads.

    Raises:
        ConfigError: they are not there, can't be fetched, or are other ones.
    """
    try:
        if path is None:
            place = Path(torch.hub.get_dir()) / "checkpoints" / inception.URL.rsplit("/", 1)[1]
            return inception.load(inception.fetch(place))
        return inception.load(path)
    except BadWeights as e:
        raise ConfigError(f"evaluate.features: inception: {e}: set evaluate.features: domain") from e


def _put_filter(run: Store, networks: Networks) -> None:
    if networks.filter is not None:
        run.put(keys.FILTER, save_classifier(networks.filter, {"trained_on": networks.trained_on}))


# ---- the samples ----


def sample_counts(test: np.ndarray, train: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each class: (in the proportion of the test images, the same but at least fifty of each class).

    The first are what is compared with the test images as a whole, the second serve the figures by class.

    Args:
        test, train: rows by class, int64 (classes,).
    """
    share = test if test.sum() else train
    exact = samples * share / share.sum()
    prior = np.floor(exact).astype(np.int64)
    prior[np.argsort(prior - exact, kind="stable")[: samples - prior.sum()]] += 1
    present = train > 0
    least = min(LEAST_PER_CLASS, max(2, samples // max(1, int(present.sum()))))
    return prior, np.where(present, np.maximum(prior, least), 0)


@dataclass(frozen=True)
class Samples:
    """Generated images as the networks see them. The images themselves aren't kept: their seeds make them again."""

    seen: Seen
    logits: Tensor | None                            # the judge's, float32 (n, classes)
    latents: np.ndarray                              # int64 (n,)

    @property
    def labels(self) -> Tensor:
        """Asked for, int64 (n,)."""
        return self.seen.labels


def look_at_samples(draw: Draw, counts: np.ndarray, networks: Networks, seed: int) -> Samples:
    """`counts[c]` images of each class c, class by class; other ones than those that will be published."""
    labels = np.repeat(np.arange(len(counts)), counts)
    latents = np.concatenate([row_seeds(derive(seed, "evaluate"), c, 0, int(n)) for c, n in enumerate(counts)])
    features, logits = [], []
    for first in range(0, len(labels), CHUNK):
        part = slice(first, first + CHUNK)
        images = draw(labels[part], latents[part])
        features.append(embed(networks.extractor, images)[0])
        if networks.judge is not None:
            logits.append(predict(networks.judge, images))
    seen = Seen(torch.cat(features), torch.from_numpy(labels))
    return Samples(seen, torch.cat(logits) if logits else None, latents)


def _first_of_each(labels: Tensor, counts: np.ndarray) -> Tensor:
    """Mask of the first `counts[c]` rows of each class c."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        mask[torch.nonzero(labels == label)[:count, 0]] = True
    return mask


def _thinned(seen: Seen, most: int) -> Seen:
    """At most `most` rows, evenly through the set."""
    if len(seen.labels) <= most:
        return seen
    return seen.take(torch.linspace(0, len(seen.labels) - 1, most).round().long())


# ---- the figures ----


def _measure(
    config: Config, snapshot: Snapshot, splits: Splits, draw: Draw, networks: Networks, run: Store, progress: Progress,
    notes: list[str],
) -> Scorecard:
    """All figures but lift."""
    classes = len(snapshot.classes)
    prior, counts = sample_counts(splits.test.counts(classes), splits.train.counts(classes), config.evaluate.samples)
    progress.note(f"generating {counts.sum():,} samples")
    samples = look_at_samples(draw, counts, networks, config.seed)
    train, val, test = (Seen(embed(networks.extractor, rows.images)[0], rows.labels)
                        for rows in (splits.train, splits.val, splits.test))
    made, as_prior = samples.seen, _first_of_each(samples.labels, prior)
    held_out, overall = _thinned(test, MOST_REAL), made.take(as_prior)
    real = _real_figures(held_out, val, len(made.labels), notes)
    whole = _manifold(held_out.features, overall.features)
    per_class = coverage_per_class(held_out, made, snapshot.classes, notes)
    spread = diversity(*_for_diversity(splits, train, val, test), made.features, made.labels)
    memory = memorisation(train.features, _thinned(test, 2000).features, overall.features, pairs=PAIRS)
    run.put(keys.NEAREST, nearest_pairs(draw, samples, torch.nonzero(as_prior)[:, 0], splits.train.images, memory))
    judged = _judge(networks.judge, splits, samples, as_prior, snapshot.classes, notes)
    _note_what_must_be_known(config, snapshot, networks, prior, counts, memory, notes)
    return Scorecard(
        samples=int(prior.sum()), features=networks.features, fd_reference=_reference(held_out, val),
        fd=_distance(held_out, overall), fd_floor=real["fd"], real=real,
        precision=whole.precision, recall=whole.recall, density=whole.density,
        coverage=_mean(per_class, whole.coverage), coverage_per_class=per_class,
        diversity_per_class={snapshot.classes[c]: round(v, 4) for c, v in spread.items()},
        memorised=memory.too_near, authentic=memory.authentic, nearest_pairs_key=keys.NEAREST,
        kernel_distance=_kernel(held_out, overall), **judged,
    )


def _distance(real: Seen, other: Seen) -> float:
    return round(frechet_distance(Gaussian(real.features), Gaussian(other.features)), 4)


def _kernel(real: Seen, other: Seen) -> float | None:
    if len(real.labels) < 2 or len(other.labels) < 2:
        return None
    a, b = _thinned(real, MOST_KERNEL), _thinned(other, MOST_KERNEL)
    return round(1000 * kernel_distance(a.features, b.features), 4)


def _manifold(real: Tensor, fake: Tensor, *, with_recall: bool = True) -> Manifold:
    """The four figures with k = 5, or as many neighbours as there are; zeros where a set has no two rows."""
    k = neighbourhood_size(min(len(real), len(fake)) if with_recall else len(real))
    if k == 0 or len(fake) == 0:
        return Manifold(0.0, 0.0, 0.0, 0.0, 0)
    return manifold(real, fake, k, with_recall=with_recall)


def _real_figures(held_out: Seen, val: Seen, samples: int, notes: list[str]) -> dict[str, float]:
    """Unseen real images in the samples' place: what a perfect generator could reach, and no more.

    Coverage falls with the number of images in that place: of the held-out ones so many are taken that both stand to each
    other as with `samples`, of which no more than there are held-out images count.
    """
    if len(val.labels) >= 2:
        place, rest = val, held_out
    else:
        odd = torch.arange(len(held_out.labels)) % 2 == 1
        place, rest = held_out.take(odd), held_out.take(~odd)
        notes.append("No validation images: the real-against-real figures compare two halves of the test images.")
    if len(place.labels) < 1 or len(rest.labels) < 1:
        return {"fd": 0.0}
    whole = _manifold(rest.features, place.features)
    fair = min(len(rest.labels), math.ceil(len(place.labels) * max(1.0, len(held_out.labels) / max(1, samples))))
    spread = torch.linspace(0, len(rest.labels) - 1, fair).long()
    per_class = coverage_per_class(rest.take(spread), place, (), [])
    return {"rows": float(len(place.labels)), "fd": _distance(rest, place), "precision": whole.precision,
            "recall": whole.recall, "density": whole.density, "coverage": _mean(per_class, whole.coverage)}


def coverage_per_class(real: Seen, made: Seen, classes: tuple[str, ...], notes: list[str]) -> dict[str, float]:
    """Class → coverage (k = 5 or what the class bears), from no more samples than there are real rows.

    With more samples than real rows coverage would rise by their number alone.

    Args:
        classes: names; () to name classes by their numbers and to note nothing.
    """
    found: dict[str, float] = {}
    for label in torch.unique(made.labels).tolist():
        rows, samples = real.of(label), made.of(label)
        name = classes[label] if classes else str(label)
        if classes and len(rows) < FEW_TEST_IMAGES:
            rest = "; its coverage is left out" if len(rows) < 2 else ": its figures are rough"
            notes.append(f"Class {name!r} has {counted(len(rows), 'test image')}{rest}.")
        if len(rows) >= 2:
            found[name] = _manifold(rows, samples[: len(rows)], with_recall=False).coverage
    return found


def _for_diversity(splits: Splits, train: Seen, val: Seen, test: Seen) -> tuple[Tensor, Tensor]:
    """Real rows to compare variety with: unseen ones, and the training ones of classes with too few of those."""
    features, labels = torch.cat([val.features, test.features]), torch.cat([val.labels, test.labels])
    counts = torch.bincount(labels, minlength=int(train.labels.max()) + 1)
    scarce = counts[train.labels] < FEW_TEST_IMAGES
    return torch.cat([features, train.features[scarce]]), torch.cat([labels, train.labels[scarce]])


def _judge(
    judge: Classifier | None, splits: Splits, samples: Samples, as_prior: Tensor, classes: tuple[str, ...],
    notes: list[str],
) -> dict[str, Any]:
    """The judge's figures, by the scorecard's names."""
    logits = samples.logits
    if judge is None or logits is None:
        notes.append("One class only: nobody can disagree about labels, and features are those of a random network.")
        present = {classes[int(c)]: 1.0 for c in torch.unique(samples.labels)}
        return {"agreement": 1.0, "agreement_per_class": present, "judge_accuracy": 1.0, "inception_like": None}
    _, per_class = agreement(logits, samples.labels)
    reached = balanced_accuracy(predict(judge, splits.test.images), splits.test.labels) if len(splits.test) else 0.0
    if reached < 0.8:
        notes.append(f"The judge itself is right on {100 * reached:.0f} % of the test images only: read agreement so.")
    return {
        "agreement": round(agreement(logits[as_prior], samples.labels[as_prior])[0], 6),
        "agreement_per_class": {classes[c]: round(v, 6) for c, v in per_class.items()},
        "judge_accuracy": round(reached, 6), "inception_like": round(inception_like_score(logits[as_prior]), 4),
    }


def nearest_pairs(draw: Draw, samples: Samples, rows: Tensor, train: Tensor, memory: Memorisation) -> bytes:
    """PNG of the nearest pairs, nearest first: a generated image, then its training image, five pairs a row.

    Args:
        rows: numbers of the samples that `memory` compared, int64 (m,).
    """
    chosen = rows[[i for i, _, _ in memory.pairs]].numpy()
    generated = draw(samples.labels.numpy()[chosen], samples.latents[chosen])
    pictures = [image for one, (_, row, _) in zip(generated, memory.pairs) for image in (one, train[row])]
    return tile_grid(torch.stack(pictures).numpy(), columns=10)


def _reference(held_out: Seen, val: Seen) -> str:
    floor = f"{len(val.labels):,} validation images" if len(val.labels) >= 2 else "their two halves"
    return f"{len(held_out.labels):,} test images; floor: {floor} in the samples' place"


def _note_what_must_be_known(
    config: Config, snapshot: Snapshot, networks: Networks, prior: np.ndarray, counts: np.ndarray, memory: Memorisation,
    notes: list[str],
) -> None:
    if config.evaluate.features == "domain" and networks.features == "random":
        notes.append("Features are those of a random network, since a classifier can't be trained on one class.")
    if (counts > prior).any():
        more = int((counts > prior).sum())
        notes.append(f"Labels of the samples follow the test images; {counted(more, 'scarce class', 'scarce classes')} got more "
                     "samples for the figures by class, which the overall figures leave out.")
    absent = [name for name in snapshot.classes if not snapshot.rows_per_class["train"].get(name)]
    if absent:
        some = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
        notes.append(f"Without training images, and so left out: {some}.")
    notes.append(f"Authentic: {memory.authentic:.2f} of the samples, {memory.authentic_held_out:.2f} of unseen real "
                 f"images; median distance to the nearest training image {memory.median_ratio:.2f} times theirs.")


def _mean(per_class: dict[str, float], otherwise: float) -> float:
    values = [v for v in per_class.values() if math.isfinite(v)]
    return round(sum(values) / len(values), 6) if values else otherwise


# ---- lift ----


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
    bench = Bench(splits.train, splits.val, splits.test, splits.val, snapshot.classes, augment, schedule, _device(config))
    figure = measure_lift(
        asked, bench, draw, config.seed, progress, model=networks.filter, discriminator=discriminator,
        published=Filter(**config.sample.filter), even=_makes_every_class(config, snapshot), memorised=memorised, run=run, inputs=inputs,
    )
    run.put_json(keys.LIFT, {"inputs": inputs, "arms": summary(figure), **figure.to_json()})
    return figure
