"""The config: YAML in, checked pydantic models out.

Unknown keys are refused; every error names the key, the value and what is allowed. `${NAME}` in values is taken from
the environment; values that came from there are never printed. The keys are a contract, see `docs/configuration.md`.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.config_faults import fault_lines
from pipeline.errors import ConfigError
from pipeline.scheduling import local_cpus, threads_asked

Family = Literal["auto", "mlp", "dcgan", "sngan", "wgan", "wgan-gp", "r3", "vae", "autoencoder"]
SourceFormat = Literal["digits", "gaussians", "imagefolder", "parquet", "idx", "webdataset"]
ShardFormat = Literal["parquet", "png", "webdataset"]
MAX_SHARD_BYTES = 500 * 2**20
MIXTURES = ("two", "ring8", "grid25")                # of source.format gaussians
_FOR_POINTS: dict[str, dict[str, Any]] = {           # defaults that fit points on the plane instead of images
    "source": {"variant": "two"}, "train": {"budget": {"kimg": 2048}}, "evaluate": {"samples": 2500, "lift": None},
    "sample": {"target": {"total": 10_000}, "rows_per_shard": 10_000},
}
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Section(BaseModel):
    """A part of the config: immutable, and no key that we don't know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class LongTail(Section):
    """Exponential class sizes: `head` images in the first class, `head / ratio` in the last."""

    head: int = Field(ge=1)
    """Images of the first class."""
    ratio: float = Field(ge=1)
    """First class over last class; the sizes between fall exponentially."""


class Subset(Section):
    """Which part of the source's train split to take; drawn by seed, the test split stays whole."""

    per_class: int | None = Field(None, ge=1)
    """At most so many training images of each class."""
    longtail: LongTail | None = None
    """An uneven source out of an even one."""
    classes: list[str] | None = Field(None, min_length=1)
    """Only these; numbering stays the source's. All by default."""

    @model_validator(mode="after")
    def _one_of(self) -> "Subset":
        if self.per_class is not None and self.longtail is not None:
            raise ValueError("give per_class or longtail, not both")
        if self.per_class is None and self.longtail is None and self.classes is None:
            raise ValueError("give one of per_class, longtail, classes")
        return self


class SourceConfig(Section):
    """Where the labelled images lie."""

    format: SourceFormat
    """How the images are labelled: one folder a class, Hugging Face image columns, MNIST's files, tar shards, or built in."""
    url: str | None = None
    """Folder or file, any fsspec URL; none for the built-in `digits` and `gaussians`."""
    subset: Subset | None = None
    """A part of the train split alone."""
    variant: str | None = None
    """With `gaussians`: `two`, `ring8` or `grid25`."""
    image_column: str | None = None
    """With `parquet`: guessed from the schema by default."""
    label_column: str | None = None
    """With `parquet`: guessed from the schema by default."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Handed to fsspec (`endpoint_url`, `key`, …); never stored, logged or shown."""

    @model_validator(mode="after")
    def _url_fits(self) -> "SourceConfig":
        built_in = self.format in ("digits", "gaussians")
        if built_in and self.url is not None:
            raise ValueError(f"format {self.format} is built in: leave out url (got {self.url!r})")
        if not built_in and not self.url:
            raise ValueError(f"format {self.format} needs url: a folder or file, any fsspec URL")
        return self

    @model_validator(mode="after")
    def _variant_fits(self) -> "SourceConfig":
        if self.format != "gaussians" and self.variant is not None:
            raise ValueError(f"variant {self.variant!r} is for format gaussians alone: leave it out")
        if self.format == "gaussians" and self.variant not in (None, *MIXTURES):
            raise ValueError(f"variant {self.variant!r}: must be one of {', '.join(MIXTURES)}")
        if self.format == "gaussians" and self.subset is not None:
            raise ValueError("subset: a mixture has no images to choose from: leave it out")
        return self


class Splits(Section):
    """Shares of the source held out by content hash; an official test split wins over `test`."""

    val: float = Field(0.15, gt=0, lt=0.5)
    """Share of each class held out for choices."""
    test: float = Field(0.15, gt=0, lt=0.5)
    """Share of each class held out for the final figures; an official test split wins."""


class PrepareConfig(Section):
    """The form that images are brought into."""

    resolution: int = Field(32, ge=8, le=256, json_schema_extra={"multipleOf": 4})
    """Pixels, square; a multiple of 4."""
    channels: Literal["grey", "rgb"] = "grey"
    """What images are converted to."""
    splits: Splits = Field(default_factory=lambda: Splits(val=0.15, test=0.15))
    """By content hash of duplicate groups."""
    max_bad: float = Field(0.01, ge=0, le=1)
    """Share of unreadable items allowed before the run fails; each is quarantined with its reason."""

    @field_validator("resolution")
    @classmethod
    def _multiple_of_four(cls, value: int) -> int:
        if value % 4:
            raise ValueError(f"must be a multiple of 4 from 8 to 256; nearest: {value // 4 * 4} or {value // 4 * 4 + 4}")
        return value


class Budget(Section):
    """How long to train: thousands of real images shown to the discriminator, or minutes of wall clock."""

    kimg: float | None = Field(None, gt=0)
    """Thousands of real images shown to the discriminator."""
    minutes: float | None = Field(None, gt=0)
    """Wall-clock minutes of training, instead."""

    @model_validator(mode="after")
    def _one_of(self) -> "Budget":
        if (self.kimg is None) == (self.minutes is None):
            raise ValueError("give exactly one of kimg, minutes")
        return self


class AugmentConfig(Section):
    """What the labels bear: a flipped 6 is no 6, so flips and colour are off unless the dataset bears them."""

    flip: bool = False
    """Mirrored images keep their label."""
    color: bool = False
    """Recoloured images keep their label."""
    translate: bool = True
    """Small shifts; seen by the discriminator only, like all of these."""
    geometry: bool = True
    """Mild rotation and scale."""


class TrainConfig(Section):
    """The generator's training."""

    model: Family = "auto"
    """`auto`: the preset that wins for such data and budget."""
    budget: Budget = Field(default_factory=lambda: Budget(kimg=200))
    """Schedules follow it. One of the two."""
    workers: int = Field(1, ge=1, le=1024)
    """Data-parallel processes. Left out: two where training runs on CPUs of this machine and they can share the batch, else one."""
    min_workers: int | None = Field(None, ge=1)
    """Fewer than `workers`: elastic training, which begins and goes on with what the cluster has left, down to so many."""
    gpus_per_worker: float = Field(0, ge=0)
    """0: on CPUs."""
    batch_size: int | None = Field(None, ge=2, le=65536)
    """Of all workers together; the model's preset by default."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    """What the labels bear."""
    max_failures: int = Field(2, ge=0)
    """Lost workers survived before the run fails."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters by name (`lr_g`, `width`, `checkpoint_every_kimg`, …), see `gan/recipe.py`: among them `restarts` (how often
    a run gone wrong goes back to its last good checkpoint), `snapshots` (generators of the run to sample from) and, against imbalance,
    `label_prior_tau`, `label_ramp`, `class_noise`, `class_pooling`; with `gaussians`, `gan/plane.py`."""

    @model_validator(mode="after")
    def _elastic_downwards(self) -> "TrainConfig":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} must be at most workers {self.workers}")
        return self

    @property
    def fewest_workers(self) -> int:
        """With how many workers training may begin."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainConfig":
        size = self.batch_size
        if size is not None and (size % self.workers or size < 2 * self.workers):
            raise ValueError(f"batch_size {size} must be a multiple of workers {self.workers} and at least twice it")
        return self


DISTINCT = 20                # synthetic rows to draw from for each that counts
MOST_DISTINCT = 20_000       # in all, though fewer count: many more than are drawn would be for nothing


MAX_RATIO = 100.0            # of synthetic rows to real ones: beyond it the real ones count for nothing


class LiftConfig(Section):
    """The lift trial: paired seeds, mixing ratios (synthetic rows per real row)."""

    seeds: int = Field(3, ge=1, le=100)
    """Pairs of classifiers trained with and without synthetic images."""
    ratios: list[float] = Field(default_factory=lambda: [0.5, 1.0], min_length=1)
    """Synthetic rows per real row that are tried, as they count in the draws, above 0 to 100; 0 is always among them."""
    distinct: int = Field(DISTINCT, ge=1)
    """Different synthetic rows to draw from for each that a ratio counts; within 20,000 in all, and what will be published."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps of each classifier. By default forty epochs, eighty of colour images, within 51,200 to 204,800 images."""
    arms: Literal["quick", "all"] = "quick"
    """`quick`: a few strong ways without synthetic images, the best of them with; `all`: the whole laboratory."""

    @field_validator("ratios")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if not all(0 < v <= MAX_RATIO for v in values):
            raise ValueError(f"every ratio must be above 0 and at most {MAX_RATIO:g}; ratio 0 is always among the arms")
        if len(set(values)) < len(values):
            raise ValueError("a ratio is given twice; each is tried once")
        return values


class EvaluateConfig(Section):
    """What to measure, on how many samples, in which feature space."""

    samples: int = Field(5000, ge=10)
    """Generated images that are measured."""
    features: Literal["domain", "random", "inception"] = "domain"
    """Whose features: a classifier trained on the source, random, or Inception (where its weights are)."""
    inception_weights: str | None = None
    """File of the FID network; null: where torch keeps downloads, fetched once and checked."""
    lift: LiftConfig | None = Field(default_factory=LiftConfig)
    """The trial whether the images help a classifier; `null` leaves it out."""


class GateConfig(Section):
    """Thresholds that decide whether the images may be published."""

    enabled: bool = True
    """Whether the thresholds below decide."""
    min_lift_pp: float | None = 0.0
    """Percentage points of balanced accuracy. 0 and above: only a proven lift of at least so much, see
    [lift.md](lift.md#what-the-gate-asks); below 0: no larger loss; `null` asks nothing, here and below."""
    max_memorised: float | None = Field(0.02, ge=0, le=1)
    """Share of samples nearer to a training image than unseen real images are."""
    min_coverage: float | None = Field(0.5, ge=0, le=1)
    """Share of real images that have a generated neighbour."""
    min_agreement: float | None = Field(None, ge=0, le=1)
    """Share of samples that a classifier gives the label they were asked for."""
    min_diversity: float | None = Field(0.5, ge=0)
    """Spread of the least varied class over that of its real images."""
    max_fd_ratio: float | None = Field(None, gt=0)
    """Fréchet distance of samples over that of unseen real images, equally many of both in each class."""


FILTERS = ("min_confidence", "max_centroid_distance", "min_nearest_distance", "max_nearest_distance", "min_discriminator")
"""Thresholds of `sample.filter`, see `pipeline.filtering`."""


class SampleConfig(Section):
    """How many images of each class to mint, and into which files."""

    target: Literal["balance"] | dict[str, int] = "balance"
    """`balance`: as many as each class lacks against the largest; or `{per_class: n}`, `{class: n, …}`, `{total: n}`."""
    format: ShardFormat = "parquet"
    """Of the shards."""
    rows_per_shard: int = Field(1000, ge=1, le=1_000_000)
    """Images in one shard."""
    bytes_per_shard: int | None = Field(None, ge=1)
    """Instead: as many rows as surely fit, were no image to shrink as PNG; at most 500 MiB."""
    workers: int = Field(2, ge=1, le=4096)
    """Processes that mint shards; left out: one where this machine has but one CPU."""
    gpus_per_worker: float = Field(0, ge=0)
    """0: on CPUs."""
    truncation: float = Field(1.0, gt=0, le=2)
    """ψ, by which latents are drawn towards their mean: below 1 more typical and less varied images; what is evaluated is drawn so too."""
    filter: dict[str, float] = Field(default_factory=dict)
    """Redraw what fails a threshold, every reject is counted: `min_confidence`, `max_centroid_distance`, `min_nearest_distance`,
    `max_nearest_distance`, `min_discriminator`, see [lift.md](lift.md#the-filter)."""

    @field_validator("target", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        if isinstance(value, dict):
            counts = {str(k): v for k, v in value.items()}
            if not counts:
                raise ValueError("empty; give balance, {per_class: n}, {total: n} or {class: n, …}")
            bad = {k: v for k, v in counts.items() if isinstance(v, bool) or not isinstance(v, int) or v < 0}
            if bad:
                raise ValueError(f"counts must be whole numbers of at least 0, got {bad}")
            if sum(counts.values()) == 0:
                raise ValueError("asks for 0 images; give balance, {per_class: n}, {total: n} or {class: n, …}")
            return counts
        return value

    @field_validator("filter")
    @classmethod
    def _known_filters(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = set(value) - set(FILTERS)
        if unknown:
            raise ValueError(f"unknown filter {sorted(unknown)}; known: {', '.join(FILTERS)}")
        for name, threshold in value.items():
            if not 0 <= threshold < 1:
                raise ValueError(f"{name} must be in 0 … 1")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> "SampleConfig":
        if self.bytes_per_shard is not None and "rows_per_shard" in self.model_fields_set:
            raise ValueError("give rows_per_shard or bytes_per_shard, not both")
        return self


class PublishConfig(Section):
    """Where the versions go."""

    url: str
    """Folder or any fsspec URL: `s3://`, `gs://`, `az://`, `file://`, `memory://`. Versions go to `<url>/<name>`."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """As in `source`."""
    retention: int | None = Field(None, ge=1)
    """How many of the latest versions stay; all by default."""

    @field_validator("url")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("empty; give a folder or any fsspec URL: s3://bucket/prefix, gs://, az://, file://, memory://")
        return value.rstrip("/") if not value.endswith("://") else value


class ClusterConfig(Section):
    """Which Ray cluster does the work."""

    address: str = "local"
    """`local`, `auto` (on a node of a Ray cluster), `host:port` of a Ray head, or `http://host:8265`, its Jobs URL."""
    ship_code: bool = False
    """Take this ganmill along instead of the one that is installed on the cluster's nodes (not with `local`)."""


class Config(Section):
    """The whole config of one run."""

    name: str
    """The dataset's name in the store: 1 to 63 of a-z, 0-9 and inner dashes."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Everything drawn follows from it."""
    source: SourceConfig
    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    publish: PublishConfig = Field(default_factory=lambda: PublishConfig(url="./out"))
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    @model_validator(mode="before")
    @classmethod
    def _defaults_for_points(cls, raw: Any) -> Any:
        source = raw.get("source") if isinstance(raw, dict) else None
        if not isinstance(source, dict) or source.get("format") != "gaussians":
            return raw
        return {**raw, **{name: {**defaults, **raw.get(name, {})} for name, defaults in _FOR_POINTS.items()
                          if isinstance(raw.get(name, {}), dict)}}

    @model_validator(mode="before")
    @classmethod
    def _workers_that_fit(cls, raw: Any) -> Any:
        """Two processes of one thread wait for each other twenty times a step, two threads some hundred times."""
        if not isinstance(raw, dict):
            return raw
        source, train, cluster = (raw.get(name, {}) for name in ("source", "train", "cluster"))
        if not (isinstance(source, dict) and isinstance(train, dict) and isinstance(cluster, dict)):
            return raw                               # refused by name further on
        here = source.get("format") != "gaussians" and cluster.get("address", "local") == "local" and not train.get("gpus_per_worker")
        if {"workers", "min_workers"} & set(train) or not here or (train.get("batch_size") or 4) not in range(4, 65537, 2):
            return raw
        if min(local_cpus(), threads_asked() or 2) < 2:
            return raw
        return {**raw, "train": {**train, "workers": 2}}

    @model_validator(mode="before")
    @classmethod
    def _one_worker_mints_on_one_cpu(cls, raw: Any) -> Any:
        """The default must run wherever ganmill does."""
        if not isinstance(raw, dict):
            return raw
        sample, cluster = (raw.get(name, {}) for name in ("sample", "cluster"))
        if not (isinstance(sample, dict) and isinstance(cluster, dict)) or "workers" in sample:
            return raw
        if cluster.get("address", "local") != "local" or local_cpus() > 1:
            return raw
        return {**raw, "sample": {**sample, "workers": 1}}

    @model_validator(mode="after")
    def _fits_points(self) -> "Config":
        if self.source.format != "gaussians":
            return self
        wrong = {
            "train.model": (self.train.model, "auto"), "evaluate.lift": (self.evaluate.lift, None),
            "sample.format": (self.sample.format, "parquet"), "sample.filter": (self.sample.filter or None, None),
            "sample.truncation": (self.sample.truncation, 1.0),
        }
        for key, (given, possible) in wrong.items():
            if given != possible:
                raise ValueError(f"{key}: source.format gaussians gives points, not images: only "
                                 f"{'null' if possible is None else possible} is possible, leave it out")
        return self

    @field_validator("name")
    @classmethod
    def _slug(cls, value: str) -> str:
        if not NAME.fullmatch(value) or len(value) > 63:
            raise ValueError("must be 1 to 63 of a-z, 0-9 and inner dashes (no slash, space or capital)")
        return value

    @model_validator(mode="after")
    def _shards_fit(self) -> "Config":
        most = MAX_SHARD_BYTES // self.row_bytes
        if self.sample.format != "png" and self.rows_per_shard > most:
            key = "rows" if self.sample.bytes_per_shard is None else "bytes"
            raise ValueError(f"sample.{key}_per_shard: shards could grow past {MAX_SHARD_BYTES / 2**20:.0f} MiB; give at most "
                             + (f"{most:,}" if key == "rows" else f"{MAX_SHARD_BYTES:,}"))
        return self

    @property
    def row_bytes(self) -> int:
        """The most that a row can take in a shard: its pixels, should they not shrink at all, and what lies beside them."""
        pixels = self.prepare.resolution**2 * (1 if self.prepare.channels == "grey" else 3)
        return pixels + self.prepare.resolution + (4096 if self.sample.format == "webdataset" else 512)

    @property
    def rows_per_shard(self) -> int:
        """As given, or as many as surely fit into `sample.bytes_per_shard`."""
        asked = self.sample.bytes_per_shard
        return self.sample.rows_per_shard if asked is None else max(1, asked // self.row_bytes)

    @property
    def dataset_url(self) -> str:
        """`<publish.url>/<name>`, what `show` and `verify` take."""
        return f"{self.publish.url.rstrip('/') if not self.publish.url.endswith('://') else self.publish.url}" + (
            "" if self.publish.url.endswith("://") else "/"
        ) + self.name

    def work_digest(self) -> str:
        """`digest` without the gate, which makes nothing: under other thresholds the same work is judged again."""
        return self.digest(*(set(type(self).model_fields) - {"gate", "cluster", "publish"}))

    def digest(self, *sections: str) -> str:
        """sha256 (16 hex) over what decides the result: where things run and go does not count.

        Args:
            sections: names of sections to take; none for all that decide the published content.
        """
        content = self.model_dump(mode="json")
        content.pop("cluster")
        content.pop("publish")
        content["source"].pop("storage_options")
        for name in ("max_failures", "min_workers"):
            content["train"].pop(name)
        for stage in ("train", "sample"):
            content[stage].pop("workers")
            content[stage].pop("gpus_per_worker")
        if sections:
            content = {name: content[name] for name in sections}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Reads a YAML file, applies `a.b=value` overrides and checks the whole.

    Raises:
        ConfigError: the file can't be read, isn't YAML, or a key or value is wrong; every fault is listed.
    """
    return parse_config(read_config(path, overrides), where=str(path))


def read_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> dict[str, Any]:
    """The YAML file with overrides applied, not yet checked, `${NAME}` not yet replaced.

    Raises:
        ConfigError: the file can't be read or isn't YAML, or an override isn't `key=value`.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"can't read the config {file}: {e.strerror if isinstance(e, OSError) else e}") from e
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} must hold keys and values (name:, source:, …), not {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def parse_config(raw: dict[str, Any], where: str = "config") -> Config:
    """Checks a config given as a dict; `${NAME}` is replaced from the environment.

    Raises:
        ConfigError: as for `load_config`.
    """
    used: set[str] = set()
    expanded = _expand(raw, "", used)
    try:
        return Config.model_validate(expanded)
    except ValidationError as e:
        lines = fault_lines(e, Config, used)
        raise ConfigError(f"{where}: " + ("; ".join(lines) if len(lines) == 1 else "\n  " + "\n  ".join(lines))) from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: give it as key=value, e.g. --set train.budget.kimg=50")
    *parents, leaf = key.split(".")
    node = raw
    for name in parents:
        child = node.get(name)
        if not isinstance(child, dict):
            child = node[name] = {}
        node = child
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {' '.join(str(e).split())}") from e
    if key == "train.budget.minutes":                # one of two: an override replaces the other
        node.pop("kimg", None)
    elif key == "train.budget.kimg":
        node.pop("minutes", None)


def _expand(value: Any, path: str, used: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, f"{path}.{k}" if path else str(k), used) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, f"{path}[{i}]", used) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{path}: the environment variable {name} is not set; set it or write the value out")
        used.add(os.environ[name])
        return os.environ[name]

    expanded = _ENV.sub(replace, value)
    whole = _ENV.fullmatch(value)
    return yaml.safe_load(expanded) if whole and re.fullmatch(r"-?\d+(\.\d+)?|true|false", expanded) else expanded
