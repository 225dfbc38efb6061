"""Which network and recipe a config and its data come to."""

from collections.abc import Sequence
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.records import Snapshot


def choose_preset(config: Config, resolution: int, counts: Sequence[int], device: str) -> tuple[Any, Any, str]:
    """(network spec, recipe, reason) for this data and config; `auto` resolved, `train.options` applied.

    Args:
        counts: training images of each class, zeros included.

    Raises:
        ConfigError: the model can't be built so; names what is possible.
    """
    from gan.augment import Augmentation
    from gan.errors import GanError, UnknownOption
    from gan.presets import Budget, choose

    asked = config.train
    minutes = asked.budget.minutes
    try:
        spec, recipe, reason = choose(
            asked.model, resolution, 1 if config.prepare.channels == "grey" else 3, counts,
            Budget(kimg=asked.budget.kimg, seconds=None if minutes is None else 60 * minutes), device,
            batch_size=asked.batch_size, augment=Augmentation(**asked.augment.model_dump()), options=asked.options,
        )
    except UnknownOption as e:
        raise ConfigError(f"train.options.{e.names[0]}: {e}") from e
    except GanError as e:
        told = str(e).removeprefix("option ")
        of_option = told.split(" ", 1)[0] in asked.options
        raise ConfigError(f"train.options.{told}" if of_option else f"train.model {asked.model}: {e}") from e
    for workers in range(asked.fewest_workers, asked.workers + 1):
        if recipe.batch_size % workers:
            raise ConfigError(f"train.workers: {workers} workers can't share batches of {recipe.batch_size} evenly; "
                              f"set train.batch_size to a multiple of {workers}"
                              + (", or train.min_workers higher" if asked.fewest_workers < asked.workers else ""))
    return spec, recipe, reason


def check_model(config: Config, counts: Sequence[int]) -> str:
    """Refuses a model that can't be had for such data before any work; else says which it will be and why."""
    return choose_preset(config, config.prepare.resolution, counts, "cuda" if config.train.gpus_per_worker else "cpu")[2]


def train_counts(snapshot: Snapshot) -> list[int]:
    """Training images of each class, zeros included."""
    return [snapshot.rows_per_class["train"][name] for name in snapshot.classes]
