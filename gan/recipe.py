"""Every hyper-parameter of a training run, and the schedules that follow its budget."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gan.augment import Augmentation
from gan.errors import BadRecipe
from gan.losses import LOSSES

MOST_SNAPSHOTS = 100         # each is a generator more in every checkpoint


@dataclass(frozen=True)
class Recipe:
    """How to train. Lengths of time are fractions of the run, images, or thousands of images (kimg), never steps.

    Exactly one of `total_kimg` (thousands of real images shown to the discriminator) and `total_seconds` is given;
    the progress t in 0 … 1 that drives every schedule is the share of it that is spent.
    """

    total_kimg: float | None = None
    total_seconds: float | None = None
    batch_size: int = 64                             # of all workers together
    objective: str = "adversarial"                   # adversarial | variational | reconstruction
    loss: str = "nonsaturating"                      # see gan.losses.LOSSES
    d_steps: int = 1                                 # discriminator updates for each update of the generator
    joint_pass: bool = True                          # real and fake through D as one batch
    fresh_g_batch: bool = False                      # the generator's turn draws its own reals and latents

    lr_g: float = 4e-4
    lr_d: float = 4e-4
    lr_schedule: str = "cosine"                      # constant | cosine | linear, from 1 to lr_floor
    lr_floor: float = 0.05
    lr_hold: float = 0.0                             # share of the run before the decay begins
    warmup: float = 0.0                              # share of the run in which the rate rises linearly from 0
    optimizer: str = "adam"                          # adam | rmsprop
    beta1: float = 0.5
    beta2: float = 0.999
    beta2_start: float | None = None                 # beta2 moves from here to beta2 by 1 - beta2 falling geometrically

    r1_gamma: float = 0.0                            # γ/2 · E‖∇D(x)‖² on real images
    r2_gamma: float = 0.0                            # the same on generated images
    gamma_decay: float = 1.0                         # γ is multiplied by this much over the run, geometrically
    penalty_every: int = 1                           # lazy penalties: every k-th step, weight × k
    penalty_step: float = 0.0                        # 0: exact; else the finite difference's step h
    penalty_share: float = 1.0                       # share of the batch that is penalised
    wgan_gp_weight: float = 0.0
    clip: float = 0.0                                # weight clipping; 0: none
    kl_weight: float = 1.0                           # variational: weight of the KL term

    ema_half_life_kimg: float = 10.0                 # 0: no average
    ema_ramp: float = 0.05                           # half-life is at most this share of what was seen
    ema_every: int = 1                               # steps between updates of the average
    snapshots: int = 1                               # averaged generators to sample from, kept evenly over the run, the last at its end
    snapshots_from: float = 0.0                      # evenly over what comes after this share of the run

    augment: Augmentation = field(default_factory=Augmentation)
    augment_p: float = 0.0
    augment_ramp: float = 0.0                        # share of the run over which p rises from 0
    label_prior_tau: float = 1.0                     # labels drawn from p(y)^τ; 1: as the data, 0: uniform
    feature_steps: int = 400                         # of the classifier whose features D may see; fewer in short runs
    label_ramp: float = 0.0                          # share of the run over which labels begin to count, from coarse to fine
    class_noise: float = 0.0                         # on G's class embeddings in training, for a class of one image; see class_noise_of
    class_pooling: float = 0.0                       # what is learnt of a rare class alone is drawn to the mean; see class_pooling_of

    precision: str = "float32"                       # float32 | bf16 (autocast; weights stay float32)
    penalty_precision: str = "float32"               # the same of the penalties' passes; the finite difference needs float32
    channels_last: bool = True

    checkpoints: int = 10                            # evenly spread over the run, the last at its end
    checkpoint_every_kimg: float | None = None       # instead of `checkpoints`
    checkpoint_every_s: float | None = None          # instead of `checkpoints`
    grids: int = 10
    min_diversity: float = 0.1                       # mean per-class spread, generated / real, that means collapse
    restarts: int = 2                                # times that a run gone wrong goes back to its last good checkpoint
    metrics_every_s: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def total_images(self) -> float:
        """Images of a kimg budget, infinite for one in seconds."""
        return math.inf if self.total_kimg is None else self.total_kimg * 1000

    def progress(self, images: int, seconds: float) -> float:
        """t in 0 … 1: the share of the budget that is spent."""
        spent = seconds / self.total_seconds if self.total_seconds is not None else images / self.total_images
        return min(1.0, spent)

    def feature_steps_here(self) -> int:
        """`feature_steps`, but at most four a second or a kimg of the budget."""
        budget = self.total_kimg if self.total_seconds is None else self.total_seconds
        return max(1, min(self.feature_steps, math.ceil(4 * (budget or 0.0))))

    def lr_scale(self, t: float) -> float:
        """What both learning rates are multiplied by at progress t."""
        if t < self.warmup:
            return t / self.warmup
        u = min(1.0, max(0.0, (t - self.lr_hold) / (1 - self.lr_hold)))
        if self.lr_schedule == "cosine":
            return self.lr_floor + (1 - self.lr_floor) * 0.5 * (1 + math.cos(math.pi * u))
        if self.lr_schedule == "linear":
            return 1 - (1 - self.lr_floor) * u
        return 1.0

    def gamma_scale(self, t: float) -> float:
        """What both γ are multiplied by at progress t."""
        return self.gamma_decay**t

    def beta2_at(self, t: float) -> float:
        """Adam's β2 at progress t."""
        if self.beta2_start is None:
            return self.beta2
        return 1 - (1 - self.beta2_start) ** (1 - t) * (1 - self.beta2) ** t

    def augment_p_at(self, t: float) -> float:
        """The augmentation's probability at progress t."""
        return self.augment_p * (min(1.0, t / self.augment_ramp) if self.augment_ramp > 0 else 1.0)

    def label_strength_at(self, t: float) -> float:
        """How much labels count at progress t, 0 … 1."""
        return min(1.0, t / self.label_ramp) if self.label_ramp > 0 else 1.0

    def class_noise_of(self, images: int) -> float:
        """Noise on the embedding of a class of so many images, over the embeddings' root mean square.

        σ·(1 - α)/(1 - αⁿ) with α = 0.99: σ for one image, a hundredth of it for hundreds (NoisyTwins, equation 4, after Cui 2019).
        """
        return self.class_noise * 0.01 / (1 - 0.99**images) if images else 0.0

    def class_pooling_of(self, images: int) -> float:
        """Share of the way to the mean of all classes that what is learnt of a class of so many images goes at each step, 0 … 1.

        σ/n², times the rate's schedule. Of four images D learns which four they are, and G copies them; what both learn of a class alone
        is therefore pooled with the others' (partial pooling, Gelman & Hill 2007), the more the fewer its images are: with 0.1 a
        class of 4 goes 0.6 % of the way at each step, a class of 40 none that counts.
        """
        return min(1.0, self.class_pooling / images**2) if images else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` wrote.

        Raises:
            BadRecipe: an unknown key or a value out of range.
        """
        return cls().replace(data) if not data else _from(cls, data)

    def replace(self, overrides: Mapping[str, Any]) -> "Recipe":
        """This recipe with some values changed by name; a new budget replaces the old one.

        Raises:
            BadRecipe: an unknown key, a wrong type or a value out of range.
        """
        budget = {"total_kimg": None, "total_seconds": None} if {"total_kimg", "total_seconds"} & set(overrides) else {}
        return _from(type(self), {**self.to_dict(), **budget, **overrides})


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """{name: value} of NAME=VALUE pairs, as command lines give them; a value is JSON, Python's True, False or None, or text.

    Raises:
        BadRecipe: a pair without an equals sign.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise BadRecipe(f"--set {pair!r}: must be NAME=VALUE")
        try:
            found[name] = json.loads(text)
        except ValueError:                           # no JSON, or a whole number of thousands of digits
            found[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return found


def _from(cls: type[Recipe], data: Mapping[str, Any]) -> Recipe:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise BadRecipe(f"no hyper-parameter is called {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    values = dict(data)
    if isinstance(augment := values.get("augment"), Mapping):
        transforms = [f.name for f in dataclasses.fields(Augmentation)]
        if unknown := sorted(set(augment) - set(transforms)):
            raise BadRecipe(f"augment has no {', '.join(unknown)}; known: {', '.join(transforms)}")
        values["augment"] = Augmentation(**augment)
    return cls(**values)


_CHOICES: dict[str, Sequence[str]] = {
    "objective": ("adversarial", "variational", "reconstruction"),
    "loss": tuple(LOSSES),
    "lr_schedule": ("constant", "cosine", "linear"),
    "optimizer": ("adam", "rmsprop"),
    "precision": ("float32", "bf16"),
    "penalty_precision": ("float32", "bf16"),
}
_LONG = 1_000_000_000        # kimg or seconds
MOST_RATE = 1e30             # of rates and weights, so that they stay numbers in float32
# name: (lowest, highest), both allowed
_RANGES: dict[str, tuple[float, float]] = {
    "total_kimg": (1e-6, _LONG), "total_seconds": (1e-6, _LONG), "batch_size": (2, 65_536), "d_steps": (1, 1000),
    "lr_g": (0, MOST_RATE), "lr_d": (0, MOST_RATE), "lr_floor": (0, 1), "lr_hold": (0, 0.999), "warmup": (0, 0.999),
    "beta1": (0, 0.9999), "beta2": (0, 0.999999), "beta2_start": (0, 0.999999), "r1_gamma": (0, MOST_RATE), "r2_gamma": (0, MOST_RATE),
    "gamma_decay": (1e-9, 1e9), "penalty_every": (1, 1_000_000), "penalty_step": (0, 1000), "penalty_share": (1e-3, 1),
    "wgan_gp_weight": (0, MOST_RATE), "clip": (0, MOST_RATE), "kl_weight": (0, 1_000_000), "ema_half_life_kimg": (0, _LONG),
    "ema_ramp": (0, 1000), "ema_every": (1, 1_000_000), "snapshots": (1, MOST_SNAPSHOTS), "snapshots_from": (0, 0.999),
    "augment_p": (0, 1), "augment_ramp": (0, 1), "label_prior_tau": (0, 1), "feature_steps": (1, 1_000_000), "label_ramp": (0, 1),
    "class_noise": (0, MOST_RATE), "class_pooling": (0, MOST_RATE), "checkpoints": (1, 1_000_000),
    "checkpoint_every_kimg": (1e-6, _LONG), "checkpoint_every_s": (1e-6, _LONG), "grids": (0, 1_000_000), "min_diversity": (0, 1),
    "restarts": (0, 1000), "metrics_every_s": (0, _LONG),
}


def check_fields(given: Any, ranges: Mapping[str, tuple[float, float]], choices: Mapping[str, Sequence[str]], within: str = "") -> None:
    """Checks every field of a dataclass by its type; a number must have a range, a text its choices.

    Args:
        ranges: lowest and highest value by field, both allowed; None is too where it is the default.
        within: what comes before a field's name in the message.

    Raises:
        BadRecipe: names the field, its value and what is allowed.
    """
    for f in dataclasses.fields(given):
        name, value = f.name, getattr(given, f.name)
        if f.type is bool:
            right, wanted = isinstance(value, bool), "true or false"
        elif f.type is str:
            right, wanted = value in choices[name], f"one of {', '.join(choices[name])}"
        elif f.type is Augmentation:
            right, wanted = isinstance(value, Augmentation), "an Augmentation"
        else:
            (low, high), kind = ranges[name], int if f.type is int else int | float
            number = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
            right = number or (value is None and f.default is None)
            wanted = f"a {'whole ' if kind is int else ''}number from {low:,} to {high:,}"
        if not right:
            raise BadRecipe(f"{within}{name} {value!r}: must be {wanted}")


def _check(recipe: Recipe) -> None:
    check_fields(recipe, _RANGES, _CHOICES)
    check_fields(recipe.augment, {}, {}, "augment.")
    if recipe.penalty_step > 0 and recipe.penalty_precision != "float32":
        raise BadRecipe("penalty_step takes the difference of two almost equal numbers: it needs penalty_precision float32")
    if recipe.total_kimg is not None and recipe.total_seconds is not None:
        raise BadRecipe("give total_kimg or total_seconds, not both")
