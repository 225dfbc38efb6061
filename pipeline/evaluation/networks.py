"""Who looks at the images: the feature extractor and filter, the judge, a random network, or the FID network."""

from dataclasses import dataclass
from pathlib import Path

import torch

from gan import inception
from gan.classical import ClassicalAugment
from gan.classifier import (
    Architecture,
    Classifier,
    ClassifierSpec,
    build_classifier,
    save_classifier,
    standardise,
    train_classifier,
)
from gan.errors import BadWeights
from gan.inception import Inception
from pipeline import keys
from pipeline.cluster import local_cpus, local_gpus
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.evaluation.data import Splits
from pipeline.leakage import rows_digest
from pipeline.lift import Rows, Schedule
from pipeline.lift.remote import cluster_is_larger
from pipeline.seeds import derive
from pipeline.side_by_side import Stop, all_side_by_side
from pipeline.store import Store

# (architecture, width, length of the training against a lift trial's); the judge differs in more than its seed
EXTRACTOR: tuple[Architecture, int, float] = ("conv", 16, 1.5)
JUDGES: dict[int, tuple[Architecture, int, float]] = {1: ("conv", 24, 1.0), 3: ("residual", 16, 0.5)}


@dataclass(frozen=True)
class Networks:
    """Who looks at the images."""

    extractor: Classifier | Inception
    judge: Classifier | None                         # None: one class only, nothing to judge
    filter: Classifier | None                        # for `pipeline.filtering`; it and the extractor know train alone
    features: str                                    # domain | random | inception
    trained_on: str | None                           # `rows_digest` of what extractor or filter learnt from


def device_of(config: Config) -> str:
    """Where this process computes: on a GPU if the training was given GPUs, one is here, and no cluster will share the work."""
    return "cuda" if config.train.gpus_per_worker and local_gpus() and not cluster_is_larger() else "cpu"


def train_networks(config: Config, splits: Splits, classes: int) -> Networks:
    """The extractor and filter (train split) and the judge (train and val), side by side, one thread each."""
    augment = ClassicalAugment.allowed(flip=config.train.augment.flip, color=config.train.augment.color)
    channels = splits.train.images.shape[1]
    several = len(torch.unique(splits.train.labels)) > 1
    device = device_of(config)

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


def put_filter(run: Store, networks: Networks) -> None:
    """Keeps the filter's model in the run folder, for sampling."""
    if networks.filter is not None:
        run.put(keys.FILTER, save_classifier(networks.filter, {"trained_on": networks.trained_on}))
