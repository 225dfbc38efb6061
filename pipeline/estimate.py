"""How long a run will take, roughly: what `ganmill validate` says before one begins; the run itself reports what it took.

Rates are of two CPU cores, at 32×32 in grey, with and without bf16 (AMD EPYC and Intel Xeon, `benchmarks/startup.py`,
`mnist_equal_seconds.py`, `smoke_verdict.py`), or of one H200 (`benchmarks/gpu.py`).
"""

from collections.abc import Sequence

from gan.precision import has_bf16
from pipeline.config import Config, LiftConfig
from pipeline.filtering import NO_FILTER, Filter
from pipeline.lift import FILTER, Schedule
from pipeline.lift.folds import FEW_VAL, FEW_VAL_QUICK, FOLDS

TRAIN_ON_CPU = {True: 1300.0, False: 400.0}          # images/s of the default model
TRAIN_ON_GPU = 30_000.0
CLASSIFY_ON_CPU = {True: 10_000.0, False: 3_600.0}   # images/s that a lift trial's classifiers are shown
CLASSIFY_ON_GPU = 80_000.0
MINT = 8_000.0                                       # images/s sampled and written
AROUND_S = 70.0                                      # starting Ray, the evaluation's own networks, the report
TIMES_AS_LONG = {"r3": 5.5, "mlp": 0.15}             # per image, on a CPU; the other families take about as long as the default
COLOUR_CLASSIFIER = 4.0                              # a residual network instead of a plain one


def seconds(config: Config, train: Sequence[int], val: int, rows: int, prepare_s: float) -> float:
    """Of a run from its begin to the published version.

    Args:
        train: training images of each class.
        val: validation images.
        rows: synthetic rows to make.
        prepare_s: to read the source.
    """
    return prepare_s + training(config) + lift(config, sum(train), val) + rows / MINT + AROUND_S


def training(config: Config) -> float:
    """Seconds of the generator's training: the budget, where that is in minutes."""
    budget, train = config.train.budget, config.train
    if budget.minutes is not None:
        return 60 * budget.minutes
    pixels = (config.prepare.resolution / 32) ** 2 * (1.15 if config.prepare.channels == "rgb" else 1.0)
    images = 1000 * (budget.kimg or 0)
    if train.gpus_per_worker:
        return images / TRAIN_ON_GPU * max(1.0, pixels)
    # some three tenths of a step at 32 px are spent whatever the pixels: 845 to 1,160 images/s at 16 where 32 makes 390
    return images / TRAIN_ON_CPU[has_bf16("cpu")] * (0.3 + 0.7 * pixels) * TIMES_AS_LONG.get(train.model, 1.0)


def lift(config: Config, train_rows: int, val: int) -> float:
    """Seconds of the lift trial; 0 without one."""
    asked = config.evaluate.lift
    if asked is None:
        return 0.0
    colour = config.prepare.channels == "rgb"
    schedule = Schedule.for_lift(train_rows, 3 if colour else 1, asked.steps)
    own = Filter(**config.sample.filter) not in (NO_FILTER, FILTER)
    images = classifiers(asked, val, own_filter=own) * schedule.steps * schedule.batch_size
    rate = CLASSIFY_ON_GPU if config.train.gpus_per_worker else CLASSIFY_ON_CPU[has_bf16("cpu")]
    side = max(1.0, 0.7 + 0.3 * (config.prepare.resolution / 32) ** 2)     # what is larger than 16 px is halved before most of the work
    return images / rate * side * (COLOUR_CLASSIFIER if colour else 1.0)


def classifiers(asked: LiftConfig, val: int, *, own_filter: bool = False, even: bool = True) -> int:
    """How many a trial trains, those of the folds included; see `pipeline.lift.Course`.

    Args:
        val: validation images; few of them are helped by cross-validation.
        own_filter: whether `sample.filter` is neither empty nor the usual one.
        even: whether rows of every class will be published.
    """
    if asked.arms == "quick":
        return asked.seeds * (2 * len(asked.ratios) + 2) + (FOLDS * (len(asked.ratios) + 1) if val < FEW_VAL_QUICK else 0)
    mixes = (3 if own_filter else 2) * len(asked.ratios)
    tries = 2 * mixes + 4 + even
    return asked.seeds * (2 * tries + 4) + (FOLDS * tries if val < FEW_VAL else 0)
