"""Which family and recipe to take for which data, budget and device; `auto` reads the table below.

Every row carries its reason, and says so where it rests on the literature rather than on a measurement of ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gan.augment import Augmentation
from gan.errors import BadRecipe, UnknownFamily, UnknownOption
from gan.networks import FAMILIES, NetSpec, check
from gan.precision import has_bf16
from gan.recipe import Recipe

# R3 needs time to win: in 15 s an H200 showed it 8,000 images of CIFAR-10 where dcgan saw 1.3 million (Fréchet distance 57 against 1.4).
LONG_ON_GPU_S = 6 * 3600.0
LONG_ON_GPU_KIMG = 20_000.0
PLENTY_KIMG = 1000.0         # images that allow a GPU's batches, or any budget in seconds
FEW = 300                    # images in the median class, under which D learns them by heart without augmentation
LEARNABLE, LEARNABLE_COLOUR = 100, 300               # images in the median class, of which a classifier learns features for D
SOME = 2000
SMALL_SET = 1000             # images in all, up to which the generators of a run are sampled together
SNAPSHOTS = 5
# In shorter runs the first of them has learnt too little; see `_for_data`.
SNAPSHOTS_KIMG, SNAPSHOTS_KIMG_COLOUR = 100.0, 500.0
SECONDS_PER_KIMG = {"cpu": 1.2, "cuda": 0.1}         # what it takes at least
TAIL = 3.0                   # largest class over smallest, from which the label prior is tempered
POOLING = 0.1                # see `gan.recipe.Recipe.class_pooling_of`


@dataclass(frozen=True)
class Budget:
    """Exactly one of thousands of real images shown to D, or seconds of wall clock."""

    kimg: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.kimg is None) == (self.seconds is None):
            raise BadRecipe("give exactly one of kimg, seconds")


@dataclass(frozen=True)
class Case:
    """What a preset may look at."""

    resolution: int
    channels: int
    images_per_class: tuple[int, ...]
    budget: Budget
    device: str

    @property
    def on_gpu(self) -> bool:
        """A CUDA device."""
        return self.device.startswith("cuda")

    @property
    def typical_class(self) -> float:
        """Images in the median class that has any."""
        return median([n for n in self.images_per_class if n] or [0])

    @property
    def imbalance(self) -> float:
        """Largest class over the smallest that has images."""
        present = [n for n in self.images_per_class if n] or [1]
        return max(present) / min(present)

    @property
    def few(self) -> bool:
        """So few images that D soon knows all of them."""
        return sum(self.images_per_class) <= SMALL_SET

    @property
    def too_short(self) -> bool:
        """A budget in which a run's first fifth makes no usable generator."""
        least = SNAPSHOTS_KIMG if self.channels == 1 else SNAPSHOTS_KIMG_COLOUR
        if self.budget.kimg is not None:
            return self.budget.kimg < least
        return (self.budget.seconds or 0) < least * SECONDS_PER_KIMG["cuda" if self.on_gpu else "cpu"]

    @property
    def long(self) -> bool:
        """A budget in which a slow recipe pays on a GPU."""
        return (self.budget.seconds or 0) >= LONG_ON_GPU_S or (self.budget.kimg or 0) >= LONG_ON_GPU_KIMG


@dataclass(frozen=True)
class Row:
    """One row of the table of `auto`: the first whose condition holds decides."""

    family: str
    condition: Callable[[Case], bool]
    reason: str


AUTO: tuple[Row, ...] = (
    Row("r3", lambda c: c.on_gpu and c.long,
        "a GPU and a long budget: residual blocks, relativistic pairing, R1 and R2 (by the literature)"),
    Row("dcgan", lambda c: True,
        "minutes or a CPU: strided convolutions give the best images for the seconds"),
)

Preset = tuple[dict[str, Any], dict[str, Any]]


def _dcgan(case: Case) -> Preset:
    # The features of a frozen classifier: more agreement and coverage for the same images, less spread. Learnt from few
    # images they know these too well: on the digits demo (median class 31) the least varied class kept 0.65 of its spread.
    # Beside them one more layer at D's base costs a tenth of the images a second and gives nothing that was seen (MNIST, 150 s).
    # What sees them has a loss of its own that counts four times the critic's for G. Without, with equal weight and with four times, on
    # held-out training images: MNIST, 150 s, four seeds, coverage 0.834, 0.838, 0.846, Fréchet distance 0.38, 0.29, 0.30, diversity ratio
    # 0.951, 0.973, 0.970, agreement 0.995, 0.994, 0.995 (twice is as good as four times; half as much covers 0.839 on two seeds, ten
    # times 0.848 on one; wider features, 24, cover 0.842 there, being slower). Without and with four times, two seeds each: CIFAR-10, 120
    # kimg, agreement 0.615 and 0.633, coverage 0.699 and 0.718, distance 5.2 and 4.2; 500 a class of it, 80 kimg, 0.582 and 0.619, 0.641
    # and 0.661, 7.6 and 6.9; MNIST, 500 a class, 80 kimg, coverage 0.742 and 0.742, distance 0.83 and 0.72, agreement 0.993 and 0.992;
    # 4,000 … 40 of it, 160 kimg, nothing either way: 0.755 and 0.754, 0.89 and 0.84, 0.992 and 0.991.
    # Fewer grey images, 80 kimg, without features and with them, two seeds each: 200 a class, agreement 0.983 and 0.992, coverage 0.639
    # and 0.714, distance 1.16 and 0.82; 100 a class, 0.978 and 0.995, 0.635 and 0.691, 1.28 and 1.11, diversity ratio 0.948 and 0.917, 0.4
    # % near copies both (one seed); 50 a class, one seed, 0.980 and 0.995, 0.617 and 0.653, but distance 1.34 and 1.63, diversity ratio
    # 0.942 and 0.886 (and no more in four lift trials with 150 kimg). CIFAR-10, 100 a class, one seed: agreement 0.523 and 0.618, coverage
    # 0.566 and 0.559, distance 8.9 and 11.5.
    many = case.typical_class >= FEW
    known = case.typical_class >= (LEARNABLE if case.channels == 1 else LEARNABLE_COLOUR)
    seen = (("d_blocks", 0), ("features", 16), ("features_weight", 4)) if known else (("d_blocks", 1), ("features", 0))
    # In minutes on a CPU more updates win over fewer images a second, until two workers share the batch and D sees features: then 64
    # gives a third more images and more coverage (MNIST, 150 s, on held-out training images: 0.833 against 0.815).
    # On a GPU larger batches cost next to no time: an H200, 10 s of MNIST, coverage 0.817 against 0.786 with 64 at 2e-3; 15 s of 20,000
    # images of CIFAR-10, Fréchet distance 1.42 against 2.40 (and 1.93 with 256 at 2e-3). A budget of few images wants its updates.
    plenty = case.budget.kimg is None or case.budget.kimg >= PLENTY_KIMG
    batch_size, lr = (256, 4e-3) if case.on_gpu and plenty else (64, 3e-3) if many else (32, 3e-3)
    # Tried and left: one pass of D for both players at once (Shen 2021) gives a tenth to a fifth more images a second and as good ones on
    # MNIST, but worse ones on CIFAR-10 (500 a class, 60 kimg, three seeds: Fréchet distance 9.4 against 6.6, coverage 0.59 against 0.67).
    # With it, no gain on MNIST either: batches that hold each class's exact share, 32 or 128 latent numbers, an average of half the
    # half-life, rates of 4e-3 or down to zero.
    recipe = {"loss": "hinge", "lr_g": lr, "lr_d": lr, "beta1": 0.0, "beta2": 0.99, "batch_size": batch_size,
              "precision": _fast(case), "class_pooling": POOLING if _pools(case) else 0.0}
    return {"options": seen}, recipe | _average(known)


def _average(known: bool) -> dict[str, Any]:
    """Half-life of G's average, where D sees features a tenth of what was shown so far, at most 500 thousand images.

    Averages of one and the same training, on held-out training images: coverage / agreement / Fréchet distance / diversity ratio.

    ============================  ============================  ============================  ============================
    .                             10,000 images at most         a tenth                       a fifth
    ============================  ============================  ============================  ============================
    CIFAR-10, 150 s               0.848 / 0.691 / 2.15 / 0.914  0.855 / 0.699 / 2.00 / 0.914  0.865 / 0.714 / 2.03 / 0.908
    500 a class of it, 80 kimg    0.760 / 0.634 / 5.12 / 0.851  0.771 / 0.638 / 4.93 / 0.851  0.780 / 0.650 / 4.93 / 0.844
    MNIST, 150 s, two seeds       0.836 / 0.995 / 0.23 / 0.978  0.844 / 0.996 / 0.23 / 0.972  0.848 / 0.996 / 0.31 / 0.961
    500 a class of it, 80 kimg    0.732 / 0.994 / 0.50 / 0.951  0.732 / 0.994 / 0.48 / 0.948  0.733 / 0.995 / 0.54 / 0.934
    4,000 … 40 of it, 120 kimg    0.739 / 0.991 / 0.52 / 0.960  0.743 / 0.993 / 0.52 / 0.953  0.755 / 0.993 / 0.57 / 0.938
    ============================  ============================  ============================  ============================

    A tenth gives the most for next to no variety. Few images, without features, one seed, 10,000 images and a tenth: MNIST, 50 a class, 100
    kimg, coverage 0.638 and 0.648, distance 0.95 and 0.93 (and no more lift, four seeds); CIFAR-10, 150 kimg, 0.743 and 0.748, 4.54 and
    4.62.
    """
    return {"ema_half_life_kimg": 500.0, "ema_ramp": 0.1} if known else {"ema_half_life_kimg": 10.0, "ema_ramp": 0.05}


def _pools(case: Case) -> bool:
    """Whether rare classes are drawn to the others: on a tail of grey images, where it was measured, in a run that has time to copy.

    Digits, 36 … 4 a class, 200 kimg, six seeds: near copies 3.5 … 11.5 % of all without, 0.4 … 3.4 % with 0.1 (docs/lift.md). On another
    one, 9.8 % without, 6.3 % where G alone is pooled, 1.2 % where both are; with 0.25 and 0.8 the rarest classes begin to look like others
    (agreement 0.8 and 0.5 by a classifier that knows no more). After 80 kimg little is copied yet, and pooling costs agreement (50 … 5 a
    class, three seeds: 0.971 for 0.982, coverage 0.789 for 0.782).
    """
    return case.channels == 1 and case.imbalance > TAIL and not case.too_short


def _sngan(case: Case) -> Preset:
    return {}, {"loss": "hinge", "lr_g": 2e-3, "lr_d": 2e-3, "beta1": 0.0, "beta2": 0.99, "batch_size": 64,
                "precision": _fast(case)}


def _mlp(case: Case) -> Preset:
    # With Adam's momentum the players' first strokes go past each other, and no label is learnt.
    return {}, {"loss": "nonsaturating", "lr_g": 2e-3, "lr_d": 2e-3, "beta1": 0.0, "joint_pass": False, "channels_last": False}


# A critic that clips or penalises learns a label by concatenation too slowly for minutes: digits, 60 kimg, agreement 0.1
# against 0.9 (tests/gan/test_conditional.py). The papers' five turns of the critic cost more than they give then.
CONDITIONED: dict[str, Any] = {"options": (("class_norm", True), ("conditioning", "both"))}


def _wgan(case: Case) -> Preset:
    return CONDITIONED, {"loss": "wasserstein", "clip": 0.02, "d_steps": 2, "optimizer": "rmsprop", "beta2": 0.99, "lr_g": 2e-3,
                         "lr_d": 2e-3}


def _wgan_gp(case: Case) -> Preset:
    return CONDITIONED, {"loss": "wasserstein", "wgan_gp_weight": 10.0, "d_steps": 2, "beta1": 0.0, "beta2": 0.9, "lr_g": 2e-3,
                         "lr_d": 2e-3}


def _r3(case: Case) -> Preset:
    # γ grows with the number of pixels (our scaling of the paper's figures) and falls tenfold over the run.
    pixels = (case.resolution / 32) ** 2
    recipe = {"loss": "relativistic", "r1_gamma": 0.5 * pixels, "r2_gamma": 0.5 * pixels, "gamma_decay": 0.1, "fresh_g_batch": True,
              "beta1": 0.0, "beta2": 0.99, "precision": _fast(case), "ema_half_life_kimg": 500.0}
    if not case.on_gpu:
        # A CPU has time for small networks alone, and for a class's vector that may not outgrow the latent (see `label_scale`): MNIST, 40
        # kimg, one seed, diversity ratio 0.92 with it; without, after 30 to 140 kimg, 0.02 … 0.35 at seven settings of γ, penalties and
        # rates from 1e-3 up. Larger rates lose it again (0.37 with 2e-3). After 100 kimg agreement 0.963, coverage 0.12.
        return ({"width": 8, "options": (("label_scale", 0.25), ("widest", 8))},
                recipe | {"r1_gamma": 0.13 * pixels, "r2_gamma": 0.13 * pixels, "lr_g": 1e-3, "lr_d": 1e-3, "batch_size": 32,
                          "penalty_share": 0.25, "ema_half_life_kimg": 20.0})
    recipe |= {"lr_floor": 0.25, "joint_pass": False, "penalty_precision": _fast(case)}
    if case.long:
        return ({"width": 128, "options": (("blocks", 2), ("group_width", 16))},
                recipe | {"lr_g": 2e-4, "lr_d": 2e-4, "beta2_start": 0.9, "batch_size": 512})
    # In minutes smaller networks, more and longer steps, and a β2 that stays, so that a step can be recorded: an H200 shows them 955,000
    # images of CIFAR-10 in 100 s (agreement 0.70, Fréchet distance 9.3), those above 255,000 in 90 s (0.13, 42). There γ was 0.05.
    return ({"width": 48, "options": (("blocks", 1), ("group_width", 16))},
            recipe | {"r1_gamma": 0.05 * pixels, "r2_gamma": 0.05 * pixels, "lr_g": 5e-4, "lr_d": 5e-4, "batch_size": 256})


def _vae(case: Case) -> Preset:
    # Where most pixels are background the learned deviation falls so low that codes lie far from the prior and samples mean nothing: MNIST,
    # 60 kimg, held-out training images, agreement 0.48 at a weight of 4, 0.87 at 10; at 20 and 40 the classes lose their variety.
    return {"z_dim": 32}, {"objective": "variational", "kl_weight": 10.0, "lr_g": 2e-3, "lr_d": 2e-3, "beta1": 0.9, "beta2": 0.999,
                           "snapshots": 1}


def _autoencoder(case: Case) -> Preset:
    return {"z_dim": 32}, {"objective": "reconstruction", "lr_g": 2e-3, "lr_d": 2e-3, "beta1": 0.9, "beta2": 0.999, "snapshots": 1}


PRESETS: dict[str, Callable[[Case], Preset]] = {
    "mlp": _mlp, "dcgan": _dcgan, "sngan": _sngan, "wgan": _wgan, "wgan-gp": _wgan_gp, "r3": _r3, "vae": _vae,
    "autoencoder": _autoencoder,
}


def _fast(case: Case) -> str:
    """bf16 where the hardware multiplies it natively: about 1.5 times the images a second on such CPUs."""
    return "bf16" if has_bf16(case.device) else "float32"


def choose(model: str, resolution: int, channels: int, images_per_class: Sequence[int], budget: Budget,
           device: str = "cpu", *, batch_size: int | None = None, augment: Augmentation | None = None,
           options: Mapping[str, Any] | None = None) -> tuple[NetSpec, Recipe, str]:
    """Network spec and recipe for a training, and the reason for them in a sentence.

    Args:
        model: a family, or `auto`.
        images_per_class: training images of each class, zeros included; its length is the number of classes.
        device: `cpu`, `cuda`, `cuda:1`, …
        batch_size: of all workers together; None: the preset's.
        augment: what the labels bear; None: translation and mild geometry.
        options: changes by name: fields of `Recipe`, `width`, `z_dim`, or options of the family.

    Raises:
        UnknownFamily, UnsupportedSpec, BadRecipe: the combination is impossible; nothing was allocated.
    """
    case = Case(resolution, channels, tuple(images_per_class), budget, device)
    reason = ""
    family = model
    if model == "auto":
        row = next(row for row in AUTO if row.condition(case))
        family, reason = row.family, f"{row.family}: {row.reason}"
    if family not in PRESETS:
        raise UnknownFamily(f"model {model!r} is unknown; known: auto, {', '.join(FAMILIES)}")
    net: dict[str, Any]
    net, changes = PRESETS[family](case)
    changes = {"total_kimg": budget.kimg, "total_seconds": budget.seconds} | _for_data(case) | changes
    changes |= {"augment": augment or Augmentation()} | ({} if batch_size is None else {"batch_size": batch_size})
    recipe_fields = set(Recipe().to_dict())
    given = dict(options or {})
    net_changes: dict[str, Any] = {name: given.pop(name) for name in ("width", "z_dim") if name in given}
    family_options = dict(net.get("options", ())) | {n: given.pop(n) for n in list(given) if n not in recipe_fields}
    shape = {"resolution": resolution, "channels": channels, "classes": len(case.images_per_class)}
    spec = NetSpec.from_dict({"family": family, **shape, **net, **net_changes, "options": family_options})
    try:
        check(spec)
    except UnknownOption as e:                       # which may be a field of the recipe, misspelt
        raise UnknownOption(e.family, e.names, e.known, ("width", "z_dim", *sorted(recipe_fields))) from None
    recipe = Recipe().replace(changes).replace(given)
    if recipe.objective != (served := changes.get("objective", "adversarial")):
        raise BadRecipe(f"objective {recipe.objective!r}: family {family} is trained by {served} alone")
    kept = f"; samples come from {recipe.snapshots} generators kept along the run" if recipe.snapshots > 1 else ""
    return spec, recipe, (reason or f"{family}: as asked{_caution(family, case)}") + kept


def _caution(family: str, case: Case) -> str:
    """What to expect of a family that isn't made for the case."""
    if family != "r3" or (case.on_gpu and case.long):
        return ""
    if case.on_gpu:
        return "; it pays in a GPU's hours, before that dcgan's images are better"
    return "; it is made for a GPU, on CPUs auto takes another that is better by far"


def _for_data(case: Case) -> dict[str, Any]:
    """What follows from the number of images: augmentation strength, label prior, and generators to sample from."""
    # In colour it pays however many images there are (CIFAR-10, 150 kimg, judged on held-out training images): with 425 a class
    # Fréchet distance 3.2 against 4.4 with 0.25, with 4,400 a class 2.6 against 3.8 without; 0.8 gives nothing more, less with 42.
    p = 0.5 if case.typical_class < FEW or case.channels == 3 else 0.25 if case.typical_class < SOME else 0.0
    # What a classifier gains from images of a generator that saw few (MNIST, 10 a class, 100 kimg, four seeds, points over the same
    # without): 0.6 from the last one, 0.6 … 0.9 from three or five of the run's last half, 1.0 from five of the whole run, 1.0 from
    # those of three runs. CIFAR-10, 50 a class, 1,000 kimg, three seeds: 3.9, 3.2, 4.0, 4.2; from such images alone -0.9 and, with five,
    # +1.8. After 80 kimg the early ones cost more than variety brings (50 a class, judged as in benchmarks/presets.py; agreement / coverage
    # of the last alone and of five): MNIST 0.983 / 0.609 and 0.969 / 0.587, CIFAR-10 0.607 / 0.656 and 0.543 / 0.642.
    # On all of MNIST five of the whole run cover less than the last alone, four of its later part about as much (docs/figures.md).
    snapshots = SNAPSHOTS if case.few and not case.too_short else 1
    return {"augment_p": p, "augment_ramp": 0.1, "label_prior_tau": 0.5 if case.imbalance > TAIL else 1.0, "snapshots": snapshots}
