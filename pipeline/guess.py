"""What a folder or URL of labelled images holds, guessed from its listing and a few images, and a config that fits."""

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.config import DISTINCT, MOST_DISTINCT, SourceConfig, SourceFormat
from pipeline.errors import SourceError
from pipeline.redaction import public_url
from pipeline.sources import open_source
from pipeline.sources.decoding import decode, dimensions
from pipeline.sources.files import SourceFiles
from pipeline.sources.imagefolder import EXTENSIONS
from pipeline.sources.source import ArraySource, Source, Unreadable

SOURCE_VARIABLE = "SOURCE_URL"                       # stands for a URL that holds a secret
_LOOKED_AT = 24
_RESOLUTIONS = (8, 16, 32, 64)                       # larger ones are possible, and cost with their square
_FEW = 1500                                          # images in all, of which a classifier gains most by more synthetic than real ones
_A_HANDFUL = 25                                      # images in the median class; of fewer no generator learns all that unseen ones show
_ENOUGH_FOR_VAL = 100                                # images in all, whose val split says how near new ones come to the training images
_UNEVEN = 3                                          # times the smallest class is the largest; from there on auto tempers labels too
_KIMG, _KIMG_ON_GPU = 200, 1000                      # minutes of two cores; of a GPU half a minute
_MIN_IMAGES = 3                                      # one each for train, val and test
_IDX = re.compile(r"(^|[-_./])(images|labels)[-_.]idx\d[-_.]ubyte(\.gz)?$|\.idx\d?(\.gz)?$", re.IGNORECASE)
_KINDS: tuple[tuple[SourceFormat, str], ...] = (("parquet", r"\.parquet$"), ("webdataset", r"\.tar(\.gz)?$"))


@dataclass(frozen=True)
class Guess:
    """What was found, and the settings that follow from it."""

    format: SourceFormat
    url: str | None                                  # as given; None for the built-in one
    name: str
    rows_per_class: dict[str, int]
    resolution: int
    channels: str                                    # grey | rgb
    size: tuple[int, int] | None                     # median height and width of the images looked at
    left_out: tuple[str, ...]                        # classes with too few images to be split
    target: str | dict[str, int]
    imbalance: float                                 # largest class over smallest kept

    @property
    def config_url(self) -> str | None:
        """The URL as a config may hold it."""
        return self.url if self.url is None or public_url(self.url) == self.url else f"${{{SOURCE_VARIABLE}}}"


def guess_format(names: Sequence[str], where: str) -> SourceFormat:
    """The format of a source from the names of its files.

    Raises:
        SourceError: they are none that can be read; says what was expected.
    """
    if any(_IDX.search(name) for name in names):
        return "idx"
    for kind, pattern in _KINDS:
        if any(re.search(pattern, name, re.IGNORECASE) for name in names):
            return kind
    images = [name for name in names if name.rsplit(".", 1)[-1].lower() in EXTENSIONS]
    if any("/" in name for name in images):
        return "imagefolder"
    if images:
        raise SourceError(f"{where} holds {len(images):,} images without a folder each class: put them into one folder a class "
                          "(images/cat/1.png, images/dog/1.png), or give the folder above")
    kinds = Counter(name.rsplit(".", 1)[-1].lower() for name in names if "." in name.rsplit("/", 1)[-1])
    seen = ", ".join(f"{count:,} .{kind}" for kind, count in kinds.most_common(4)) or "nothing"
    raise SourceError(f"{where} holds {seen}: expected a folder of images a class, .parquet files, .tar shards or MNIST's idx files")


def guess_source(url: str, source_format: str | None = None) -> Guess:
    """Looks at `url` (or "digits") and proposes settings.

    Args:
        source_format: what the user said, else it is guessed.

    Raises:
        SourceError: nothing there, unreachable, or no labelled images.
    """
    if url == "digits":
        config = SourceConfig(format="digits")
    else:
        found = source_format or guess_format([f.name for f in SourceFiles(SourceConfig(format="imagefolder", url=url)).listing()[0]],
                                              public_url(url) or url)
        config = SourceConfig.model_validate({"format": found, "url": url})
    source = open_source(config, seed=0)
    census = source.census()
    counts = sum(census.rows.values())
    rows = dict(zip(source.classes, (int(n) for n in counts), strict=True))                    # type: ignore[union-attr]
    kept = {name: n for name, n in rows.items() if n >= _MIN_IMAGES}
    if not kept:
        raise SourceError(f"{public_url(url)}: no class has {_MIN_IMAGES} images, so none can be split into train, val and test")
    sizes, colour = _look(source)
    side = min(sizes) if sizes else 32
    resolution = next((r for r in _RESOLUTIONS if side <= r * 1.15), _RESOLUTIONS[-1])
    largest, smallest = max(kept.values()), min(kept.values())
    return Guess(
        format=config.format, url=config.url, name=_slug(url), rows_per_class=rows, resolution=resolution,
        channels="rgb" if colour else "grey", size=sizes, left_out=tuple(name for name in rows if name not in kept),
        target=_target(largest, smallest, len(kept)), imbalance=largest / smallest,
    )


def _target(largest: int, smallest: int, classes: int) -> str | dict[str, int]:
    """What to publish: where images are few, many times as many of each class, since a classifier gains by drawing from many."""
    many = min(DISTINCT * largest, MOST_DISTINCT // classes)
    if many > largest:
        return {"per_class": many}
    return "balance" if largest > smallest else {"per_class": largest}


def _look(source: Source) -> tuple[tuple[int, int] | None, bool]:
    """(median height and width, whether any has colour) of the first images."""
    if isinstance(source, ArraySource):
        shape = source.shape()
        return (shape[0], shape[1]), len(shape) > 2 and shape[2] == 3
    heights, widths, colour = [], [], False
    with contextlib.closing(source.items()) as items:
        for item in itertools.islice(items, _LOOKED_AT):
            with contextlib.suppress(Unreadable):
                payload = item.load()
                if isinstance(payload, bytes):
                    height, width = dimensions(payload)[:2]
                    colour = colour or decode(payload, 32)[0].shape[2] == 3
                else:
                    height, width = payload.shape[:2]
                    colour = colour or payload.ndim > 2
                heights.append(height)
                widths.append(width)
    if not heights:
        return None, colour
    return (sorted(heights)[len(heights) // 2], sorted(widths)[len(widths) // 2]), colour


def _slug(url: str) -> str:
    last = re.sub(r"[?#].*", "", url).rstrip("/").rsplit("/", 1)[-1].split("*")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\.\w+$", "", last).lower()).strip("-")[:63].strip("-")
    return slug or "dataset"


def write_config(guess: Guess, publish_url: str, gpus: int) -> str:
    """The YAML text of a config for `guess`, with comments that say what was found and what may be changed."""
    kept = [name for name in guess.rows_per_class if name not in guess.left_out]
    subset = ""
    if guess.left_out:
        subset = (f"  subset: {{classes: {_flow(kept)}}}\n"
                  f"                                 # left out, fewer than {_MIN_IMAGES} images: {', '.join(guess.left_out)}\n")
    url = "" if guess.url is None else f"  url: {_flow(guess.config_url)}\n"
    few = sum(guess.rows_per_class.values()) <= _FEW
    size = f"the images are {guess.size[0]} x {guess.size[1]}; " if guess.size else ""
    return _TEMPLATE.format(
        found=f"{sum(guess.rows_per_class.values()):,} images of {len(guess.rows_per_class)} classes, the largest "
              f"{guess.imbalance:.3g} times the smallest",
        name=guess.name, format=guess.format, url=url, subset=subset, size=size, resolution=guess.resolution, channels=guess.channels,
        gpus=gpus, kimg=_KIMG_ON_GPU if gpus else _KIMG,
        target=_flow(guess.target), target_why=_why(guess), lift=_FEW_LIFT if few else _LIFT, publish=_flow(publish_url),
        coverage=_LESS_COVERED if median(guess.rows_per_class[name] for name in kept) < _A_HANDFUL else "",
        filter=_filter(guess, sum(guess.rows_per_class[name] for name in kept)) if len(kept) > 1 else "",
    )


def _filter(guess: Guess, images: int) -> str:
    """What of so many images is to be drawn again.

    Of a class of four images some samples may pass for another's, and are then what a classifier knows most of the class by: digits with
    36 … 4 a class gain with both thresholds, by the first alone it wasn't shown (docs/lift.md). Of photographs, of which a classifier
    is seldom so sure, it wasn't measured.
    """
    if not _ENOUGH_FOR_VAL <= images <= _FEW:
        return ""
    return _COPIES_AND_DOUBTFUL_AGAIN if guess.imbalance > _UNEVEN and guess.channels == "grey" else _COPIES_AGAIN


def _why(guess: Guess) -> str:
    if guess.target == "balance":
        return "as many as each class lacks against the largest"
    largest = max(guess.rows_per_class.values())
    if guess.target == {"per_class": largest}:
        return "the classes are equally large: as many again"
    return "a small set gains most by many different images; or balance: as many as each class lacks"


def _flow(value: object) -> str:
    """`value` in YAML's flow style, which JSON is; braces that `format` would read stay out of the template."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else json.dumps(value, ensure_ascii=False)


_LIFT, _FEW_LIFT = "{seeds: 3, ratios: [0.5, 1.0]}", "{seeds: 6, ratios: [1.0, 2.0]}"      # three seeds prove large differences alone

_COPIES_AGAIN = """\
  filter: {min_nearest_distance: 0.03}     # of few images a generator makes near copies: these are drawn again
"""

_COPIES_AND_DOUBTFUL_AGAIN = """\
  filter: {min_nearest_distance: 0.03, min_confidence: 0.97}   # near copies of the few are drawn again, and what may pass for another class
"""

_LESS_COVERED = """\
  min_coverage: 0.3              # 0.5 elsewhere: a handful of images doesn't show all that unseen ones do
"""

_TEMPLATE = """\
# Written by `ganmill init`: {found}.
# Check it with `ganmill validate`, run it with `ganmill run`. All keys: docs/configuration.md.
name: {name}
seed: 0
source:
  format: {format}
{url}{subset}prepare:
  resolution: {resolution}                 # {size}a multiple of 4 up to 256; costs grow with its square
  channels: {channels}                 # grey | rgb
train:
  model: auto
  budget: {{kimg: {kimg}}}            # thousands of real images shown; or {{minutes: 30}}
  gpus_per_worker: {gpus}
  augment: {{flip: false, color: false}}   # true where a mirrored or recoloured image keeps its label
evaluate:
  lift: {lift}   # does a classifier get better with the synthetic images?
gate:
  min_lift_pp: 0.0               # publish only if that is proven; -1.0 lets a measured loss of one point pass
{coverage}sample:
  target: {target}                # {target_why}; or {{per_class: n}}, {{total: n}}, {{class: n, ...}}
{filter}  format: parquet                # parquet | png | webdataset
publish:
  url: {publish}                     # s3://bucket/prefix, gs://, az:// or a folder
"""
