"""Which generated images are good enough: four scores a row, thresholds set on unseen real images.

    confidence         probability of the asked label, by a classifier that is not the judge
    centroid_distance  to the class's centroid in that classifier's features; 1 = the median of unseen real images
    nearest_distance   to the nearest training image in the same features, over how far that one lies from the five nearest to it
                       (as `gan.metrics.memorisation` has it: training rows lie thicker in a plain class than in a varied one);
                       1 = the median of unseen real images. Too near is a copy, too far an artefact
    discriminator      the discriminator's logit less its median of unseen real images, where the generator has one

Classifier, centroids and discriminator know the train split alone; the val split gives scales and quantiles.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import ConfigError, MissingObject, SamplingFailed
from pipeline.records import Checkpoint
from pipeline.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gan.classifier import Classifier
    from gan.rejection import Critic

THICKNESS_OF = 2000                                  # training rows that say how thickly such rows lie
COMPANIONS = 16                                      # real rows kept for a discriminator that compares rows of a batch
LEAST_FOR_MEDIAN = 5                                 # val rows of a class by which its own scale is known
WITHOUT_DISCRIMINATOR = ("vae", "autoencoder")
_SHORT = {"min_confidence": "p", "max_centroid_distance": "d", "min_nearest_distance": "n", "max_nearest_distance": "f",
          "min_discriminator": "c"}


@dataclass(frozen=True)
class Filter:
    """What a row must pass; 0 asks nothing. All but the confidence are quantiles, 0 … 1, of the val split's own scores."""

    min_confidence: float = 0.0                      # probability of the asked label
    max_centroid_distance: float = 0.0               # 0.95: no farther from the centroid than 95 % of unseen real images
    min_nearest_distance: float = 0.0                # 0.03: nearer than all but 3 % of them to a training image is a copy
    max_nearest_distance: float = 0.0                # 0.99: farther than 99 % of them from every one is an artefact
    min_discriminator: float = 0.0                   # 0.05: the discriminator doubts it more than 95 % of them

    @property
    def name(self) -> str:
        """Short, for rows and keys: none, p0.8, p0.8d0.95."""
        return "".join(f"{_SHORT[key]}{value:g}" for key, value in asdict(self).items() if value > 0) or "none"

    @property
    def asked(self) -> dict[str, float]:
        """The thresholds that ask something, as `sample.filter` takes them."""
        return {key: value for key, value in asdict(self).items() if value > 0}


NO_FILTER = Filter()


def score_columns(config: Config, family: str) -> tuple[str, ...]:
    """The columns that the filter adds to each row; none without a filter.

    Args:
        family: of the generator, `auto` resolved.
    """
    if not Filter(**config.sample.filter).asked:
        return ()
    columns = ("confidence", "centroid_distance", "nearest_distance")
    return columns if family in WITHOUT_DISCRIMINATOR else (*columns, "discriminator")


@dataclass(frozen=True)
class Reference:
    """What unseen real images score, and what the scores are measured from."""

    train: "Tensor"                                  # features float32 (N, 128)
    beside: tuple["Tensor", "Tensor"]                # the images and labels that the discriminator sees each row beside
    centroids: "Tensor"                              # float32 (classes, 128)
    thinnest: float                                  # least distance that counts as a training row's from its neighbours
    scales: dict[str, "Tensor"]                      # score → what is 1 (distances) or 0 (discriminator), float32 (classes,)
    unseen: dict[str, "Tensor"]                      # score → the val split's own, sorted, float32 (n,)

    def to_bytes(self, facts: Mapping[str, Any]) -> bytes:
        """As safetensors; `facts` in the header."""
        import safetensors.torch

        tensors = {"train": self.train, "centroids": self.centroids, "images": self.beside[0], "labels": self.beside[1],
                   "thinnest": self.train.new_tensor([self.thinnest])}
        tensors |= {f"scale/{k}": v for k, v in self.scales.items()} | {f"unseen/{k}": v for k, v in self.unseen.items()}
        return safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, {"facts": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reference":
        """What `to_bytes` wrote."""
        import safetensors.torch

        tensors = safetensors.torch.load(data)

        def named(prefix: str) -> dict[str, "Tensor"]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return cls(tensors["train"], (tensors["images"], tensors["labels"]), tensors["centroids"], float(tensors["thinnest"]),
                   named("scale/"), named("unseen/"))


class Screen:
    """Scores rows, and says by a filter which pass and why the others don't.

    Args:
        net: the filter's classifier, trained on the train split alone.
        critic: the generator's discriminator; None where it has none.
    """

    def __init__(self, net: "Classifier", reference: Reference, critic: "Critic | None" = None) -> None:
        self._net, self._reference, self._critic = net, reference, critic
        self._thickness = reference.train.new_full((len(reference.train),), float("nan"))       # of training rows asked for so far

    @classmethod
    def fitted(
        cls, net: "Classifier", train: tuple["Tensor", "Tensor"], val: tuple["Tensor", "Tensor"], classes: int,
        discriminator: "nn.Module | None" = None,
    ) -> "Screen":
        """From the train split's and the val split's (images, labels); `discriminator` is the generator's."""
        import torch

        from gan.classifier import embed
        from gan.rejection import Critic

        features, _ = embed(net, train[0])
        centroids, thinnest = torch.stack([_centroid(features[train[1] == c]) for c in range(classes)]), _thinnest(features)
        some = val if len(val[1]) else train
        beside = (some[0][:COMPANIONS].clone(), some[1][:COMPANIONS].clone())
        critic = Critic(discriminator, *beside) if discriminator is not None else None
        raw = cls(net, Reference(features, beside, centroids, thinnest, {}, {}), critic)
        scores = raw._measured(*val) if len(val[1]) else {}
        middles = {k: _middles(k, v, val[1], classes) for k, v in scores.items()}
        scaled = {k: _scaled(k, v, middles[k][val[1]]).sort().values for k, v in scores.items() if k != "confidence"}
        return cls(net, Reference(features, beside, centroids, thinnest, {k: middles[k] for k in scaled}, scaled), critic)

    @property
    def reference(self) -> Reference:
        """What rows are held against."""
        return self._reference

    def scores(self, images: "Tensor", labels: "Tensor") -> dict[str, "Tensor"]:
        """Score → float32 (n,) of uint8 images (n, C, H, W) with labels int64 (n,)."""
        raw = self._measured(images, labels)
        scales = self._reference.scales
        return {k: _scaled(k, v, scales[k][labels]) if k in scales else v for k, v in raw.items()}

    def judge(self, wanted: Filter, images: "Tensor", labels: "Tensor") -> tuple[dict[str, "Tensor"], list[str]]:
        """The scores, and a row's reason to be rejected: confidence, centroid, copy, artefact, discriminator; "" to keep it."""
        scores = self.scores(images, labels)
        reasons = [""] * len(labels)
        for reason, failed in self._failed(wanted, scores):
            for row in failed.nonzero()[:, 0].tolist():
                reasons[row] = reasons[row] or reason
        return scores, reasons

    def keep(self, wanted: Filter) -> Callable[["Tensor", "Tensor"], "Tensor"] | None:
        """The filter as a function of images and labels to bool (n,); None when it asks nothing."""
        if wanted == NO_FILTER:
            return None

        def keep(images: "Tensor", labels: "Tensor") -> "Tensor":
            import torch

            return torch.tensor([not reason for reason in self.judge(wanted, images, labels)[1]], dtype=torch.bool)

        return keep

    def _failed(self, wanted: Filter, scores: Mapping[str, "Tensor"]) -> list[tuple[str, "Tensor"]]:
        """(reason, rows that fail by it), the first reason counts."""
        found = [("confidence", scores["confidence"] < wanted.min_confidence)]
        if wanted.min_nearest_distance:
            found.append(("copy", scores["nearest_distance"] < self._quantile("nearest_distance", wanted.min_nearest_distance)))
        if wanted.max_centroid_distance:
            limit = self._quantile("centroid_distance", wanted.max_centroid_distance)
            found.append(("centroid", scores["centroid_distance"] > limit))
        if wanted.max_nearest_distance:
            found.append(("artefact", scores["nearest_distance"] > self._quantile("nearest_distance", wanted.max_nearest_distance)))
        if wanted.min_discriminator:
            if "discriminator" not in scores:
                raise SamplingFailed("sample.filter.min_discriminator: this generator was trained without a discriminator; leave it out")
            found.append(("discriminator", scores["discriminator"] < self._quantile("discriminator", wanted.min_discriminator)))
        return found

    def _quantile(self, score: str, share: float) -> float:
        unseen = self._reference.unseen.get(score)
        if unseen is None or not len(unseen):
            raise SamplingFailed("sample.filter: no validation image to set a threshold by; only min_confidence can be asked")
        place = share * (len(unseen) - 1)            # torch.quantile stops at 16 million values
        low = int(place)
        high = min(low + 1, len(unseen) - 1)
        return float(unseen[low] + (unseen[high] - unseen[low]) * (place - low))

    def _measured(self, images: "Tensor", labels: "Tensor") -> dict[str, "Tensor"]:
        """The scores before they are scaled."""
        from gan.classifier import embed
        from gan.metrics.distances import nearest

        features, logits = embed(self._net, images)
        distance, row = (t[:, 0] for t in nearest(features, self._reference.train))
        scores = {
            "confidence": logits.softmax(dim=1).gather(1, labels[:, None])[:, 0],
            "centroid_distance": (features - self._reference.centroids[labels]).norm(dim=1),
            "nearest_distance": distance / self._thickness_at(row),
        }
        return scores if self._critic is None else scores | {"discriminator": self._critic(images, labels)}

    def _thickness_at(self, rows: "Tensor") -> "Tensor":
        """Mean distance of these training rows to the five nearest others; each is measured once."""
        from gan.metrics.memorisation import surroundings

        asked = rows[self._thickness[rows].isnan()].unique()
        if len(asked) and len(self._thickness) > 1:
            self._thickness[asked] = surroundings(self._reference.train, asked, self._reference.thinnest)[1][asked]
        return self._thickness[rows].nan_to_num(1.0)     # a single training row has no neighbours


def _centroid(features: "Tensor") -> "Tensor":
    return features.mean(dim=0) if len(features) else features.new_zeros(features.shape[1])


def _thinnest(features: "Tensor") -> float:
    """What a training row among its own doubles counts as lying from its neighbours."""
    import torch

    from gan.metrics.memorisation import LEAST_THICKNESS, surroundings

    if len(features) < 2:
        return 0.0
    rows = torch.arange(0, len(features), -(-len(features) // THICKNESS_OF))
    return LEAST_THICKNESS * float(surroundings(features, rows, 0.0)[1][rows].median())


def _middles(score: str, values: "Tensor", labels: "Tensor", classes: int) -> "Tensor":
    """Median of each class with enough rows, of all rows for the others; of a distance never 0.

    The distance to the nearest training row is relative to where that lies already: one median for all.
    """
    import torch

    least = LEAST_FOR_MEDIAN if score != "nearest_distance" else len(values) + 1
    own = [values[labels == c] for c in range(classes)]
    found = torch.stack([v.median() if len(v) >= least else values.median() for v in own])
    return found if score == "discriminator" else found.clamp_min(1e-6)


def _scaled(score: str, values: "Tensor", middle: "Tensor") -> "Tensor":
    return values - middle if score == "discriminator" else values / middle


# ---- in a run's folder ----


class RunFilter:
    """`pipeline.mint.RowFilter` by a run's own classifier, images and discriminator."""

    def __init__(self, screen: Screen, wanted: Filter) -> None:
        self._screen, self._wanted = screen, wanted

    def judge(self, images: np.ndarray, labels: np.ndarray) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """See `pipeline.mint.RowFilter`; images uint8 (n, C, H, W), labels int64 (n,)."""
        import torch

        scores, reasons = self._screen.judge(self._wanted, torch.from_numpy(images), torch.from_numpy(labels))
        return {name: values.numpy() for name, values in scores.items()}, reasons


def discriminator_of(checkpoint: bytes) -> "nn.Module | None":
    """The discriminator in a checkpoint; None for a family without one."""
    from gan.checkpoint import load_generator

    loaded = load_generator(checkpoint)
    return None if loaded.spec.family in WITHOUT_DISCRIMINATOR else loaded.discriminator


def put_reference(run: Store, checkpoint: Checkpoint, classes: int) -> None:
    """Sees to it that the run folder holds the filter's reference for this checkpoint and classifier: made once, in the driver.

    Raises:
        SamplingFailed: there is no classifier, because the evaluation had no classes to tell apart.
        Leakage: the classifier was trained on other rows than the train split.
    """
    made_from = {"generator": checkpoint.sha256, "classifier": hashlib.sha256(_classifier(run)).hexdigest()}
    try:
        data = run.get(keys.FILTER_REFERENCE)
        size = int.from_bytes(data[:8], "little")
        if json.loads(json.loads(data[8:8 + size])["__metadata__"]["facts"]) == made_from:
            return
    except (MissingObject, ValueError, KeyError):
        pass
    run.put(keys.FILTER_REFERENCE, _fit(run, checkpoint, classes).reference.to_bytes(made_from))


def _fit(run: Store, checkpoint: Checkpoint, classes: int) -> Screen:
    import torch

    from gan.classifier import load_classifier
    from pipeline.leakage import check_trained_on
    from pipeline.prepare import load_split

    net, facts = load_classifier(_classifier(run))
    (x, y), (val_x, val_y) = ((torch.from_numpy(s.images), torch.from_numpy(s.labels))
                              for s in (load_split(run, "train"), load_split(run, "val")))
    check_trained_on(facts.get("trained_on", ""), x, y, "the filter's classifier")
    known = (torch.bincount(y, minlength=classes) > 0)[val_y]
    return Screen.fitted(net, (x, y), (val_x[known], val_y[known]), classes, discriminator_of(run.get(checkpoint.key)))


def open_screen(run: Store, checkpoint: Checkpoint) -> Screen:
    """The run's screen; `put_reference` must have been called for this checkpoint."""
    from gan.classifier import load_classifier
    from gan.rejection import Critic

    net, _ = load_classifier(_classifier(run))
    reference = Reference.from_bytes(run.get(keys.FILTER_REFERENCE))
    if "discriminator" not in reference.scales:
        return Screen(net, reference)
    discriminator = discriminator_of(run.get(checkpoint.key))
    return Screen(net, reference, Critic(discriminator, *reference.beside) if discriminator is not None else None)


def _classifier(run: Store) -> bytes:
    try:
        return run.get(keys.FILTER)
    except MissingObject as e:
        raise SamplingFailed(
            f"sample.filter: no filter model in {run.where()}: it needs evaluate.features: domain and two classes at least; "
            "leave sample.filter out, or evaluate again"
        ) from e


def load_filter(run: Store, wanted: Filter, checkpoint: Checkpoint) -> RunFilter:
    """What a sampling worker filters with."""
    return RunFilter(open_screen(run, checkpoint), wanted)


def filter_loader(config: Config, run: Store, checkpoint: Checkpoint, classes: int) -> Callable[[Store], RunFilter] | None:
    """What a sampling worker loads its filter with; None when the config asks for none.

    Raises:
        SamplingFailed, Leakage: as `put_reference`.
        ConfigError: a threshold that this generator can't be asked for.
    """
    wanted = Filter(**config.sample.filter)
    if not wanted.asked:
        return None
    if wanted.min_discriminator and checkpoint.model in WITHOUT_DISCRIMINATOR:
        raise ConfigError(f"sample.filter.min_discriminator: a generator of family {checkpoint.model} has no discriminator; leave it out")
    put_reference(run, checkpoint, classes)
    return functools.partial(load_filter, wanted=wanted, checkpoint=checkpoint)
