"""A small GAN that learns a mixture on the plane, and how well it did: the value function, and a D fitted afresh.

Perceptrons, relativistic pairing, R1 and R2 that fade out, rates that fall to nothing, averaged weights. What counts most is G's
tanh: the modes lie some forty deviations apart, so G must be flat on them and a cliff between them. On `ring8` after 1,500 steps
LeakyReLU left a fifth of the points strewn between the modes, tanh one in seventy. Steep cliffs are a risk as well: points don't
cross them any more, so a mode that was missed by then stays missed. A blur of what both players see, which fades as training goes
on, has all of them found first; without it four of ten trainings on `grid25` missed one.

Some modes still come out twice as likely as others. So what is minted is drawn again until D lets it pass (`gan.rejection`, the
exact rule), which evens them out: on `grid25` the reverse KL falls from 0.05 to 0.006 (`benchmarks/mixtures.py`). It doesn't widen
the modes, each of which comes out a third to a half as wide as it is. A D fitted to the finished G and obeyed in part does, but
takes weight from the narrowest.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gan import ema
from gan.checkpoint import read_tensors, write_tensors
from gan.errors import BadCheckpoint, BadData, BadRecipe, TrainingDiverged
from gan.losses import LOSSES, logistic_d, loss_by_name
from gan.mixtures import MIXTURES, Mixture, ModeFigures, mode_figures
from gan.networks.mlp import perceptron
from gan.penalties import squared_gradient_norm
from gan.recipe import MOST_RATE, check_fields
from gan.rejection import Rejection, fit, logistic_line, sift
from gan.sampler import splitmix64
from gan.sampling import latents
from gan.step import frozen

LOOKS = 40                   # times that the value function is measured in a run
LOOK_POINTS = 2000
PACGAN_POINTS = 2500         # by which PacGAN's tables are made
RULE_POINTS = 20_000         # of each kind, by which D's word is calibrated
# name: (lowest, highest), both allowed
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1_000_000_000), "seconds": (1e-6, 1_000_000_000), "batch_size": (1, 65_536), "packing": (1, 1000), "gamma": (0, MOST_RATE),
    "gamma_end": (0, MOST_RATE), "penalty_every": (1, 1_000_000), "noise": (0, 1000), "noise_end": (0, 1000), "noise_until": (0, 1),
    "lr_g": (0, MOST_RATE), "lr_d": (0, MOST_RATE), "lr_floor": (0, 1), "beta1": (0, 0.9999), "beta2": (0, 0.999999), "width": (1, 2048),
    "depth": (1, 16), "z_dim": (1, 1024), "steepness": (0, 1000), "octaves": (0, 16), "ema_half_life_steps": (0, 1_000_000_000),
}


@dataclass(frozen=True)
class MixtureRecipe:
    """How a mixture is learned. D sees `packing` points at once (PacGAN); the budget is `steps`, or `seconds` where given."""

    steps: int = 8000
    seconds: float | None = None
    batch_size: int = 256
    packing: int = 1
    loss: str = "relativistic"
    gamma: float = 0.01                             # γ/2 · (R1 + R2), in units of the mixture's scale
    gamma_end: float = 2e-5
    penalty_every: int = 1                           # lazily: every k-th step, k times as heavy
    noise: float = 0.2                               # deviation of a blur at the start, in units of the mixture's scale …
    noise_end: float = 0.01                          # … which falls to this …
    noise_until: float = 0.8                         # … by this share of the run, and is none from there on
    lr_g: float = 3e-3
    lr_d: float = 1e-3
    lr_floor: float = 0.02                           # of both
    beta1: float = 0.5
    beta2: float = 0.99
    width: int = 128
    depth: int = 3
    z_dim: int = 2
    steepness: float = 1.0                           # of G's first layer at the start: cliffs in z grow from there
    octaves: int = 3                                 # of sines and cosines of the coordinates that D sees beside them
    ema_half_life_steps: float = 200.0
    reject: bool = True                              # what is minted is drawn until D lets it pass; with packing nothing is rejected

    def __post_init__(self) -> None:
        check_fields(self, _RANGES, {"loss": tuple(LOSSES)})

    @property
    def points_a_step(self) -> int:
        """True points that D is shown in a step."""
        return self.batch_size * self.packing

    def lr_scale(self, t: float) -> float:
        """What both learning rates are multiplied by at progress t in 0 … 1: a cosine down to the floor."""
        return self.lr_floor + (1 - self.lr_floor) * 0.5 * (1 + math.cos(math.pi * t))

    def gamma_at(self, t: float) -> float:
        """γ at progress t, falling geometrically; 0 stays 0."""
        return self.gamma ** (1 - t) * self.gamma_end**t if self.gamma > 0 and self.gamma_end > 0 else 0.0

    def noise_at(self, t: float) -> float:
        """Deviation of the blur at progress t, falling geometrically to `noise_end`, then none."""
        if t >= self.noise_until or self.noise <= 0:
            return 0.0
        u = t / self.noise_until
        return self.noise ** (1 - u) * self.noise_end**u


@dataclass(frozen=True)
class Look:
    """How far a run was at one moment.

    Attributes:
        points: true points that D was shown so far.
        value: E log D(x) + E log(1 - D(G(z))) by the D at hand, its logit calibrated by a line; -log 4 where it can't tell.
    """

    points: int
    loss_d: float
    loss_g: float
    value: float
    modes: int
    high_quality: float


@dataclass(frozen=True)
class MixtureRun:
    """A trained pair on the plane, and how it fared."""

    mixture: Mixture
    recipe: MixtureRecipe
    seed: int
    generator: nn.Module                             # averaged weights
    discriminator: nn.Module
    figures: ModeFigures                             # of `PACGAN_POINTS` points
    curve: tuple[Look, ...]
    seconds: float
    rule: Rejection | None = None                    # by D's logits; None: every draw is kept
    as_drawn: ModeFigures | None = None              # the same figures of every draw

    @property
    def points(self) -> int:
        """True points that D was shown."""
        return self.curve[-1].points

    def sample(self, n: int, seed: int) -> Tensor:
        """n generated points in the mixture's own units, float32 (n, 2)."""
        return self.minted(np.arange(n, dtype=np.int64) + (splitmix64(seed) >> 2))

    def minted(self, seeds: NDArray[np.int64]) -> Tensor:
        """A point for each seed int64 (n,), which follows from that seed alone: its first draw that D lets pass."""
        if self.rule is None:
            return self.drawn(seeds)
        return sift(lambda _, tried: self.drawn(tried), lambda points, _: self.word(points), torch.zeros(len(seeds), dtype=torch.int64),
                    seeds, self.rule).samples

    def drawn(self, seeds: NDArray[np.int64]) -> Tensor:
        """The generator's point for each seed, (n, 2), whatever D says."""
        return self.at(latents(seeds, self.recipe.z_dim))

    def word(self, points: Tensor) -> Tensor:
        """D's logits (n,) of points (n, 2) in the mixture's own units."""
        with torch.no_grad():
            logits: Tensor = self.discriminator(points / self.mixture.scale).squeeze(1)
            return logits

    def at(self, z: Tensor) -> Tensor:
        """Generated points float32 (n, 2) of latents (n, z_dim), in the mixture's own units."""
        with torch.no_grad():
            return self.generator(z) * self.mixture.scale


def train_mixture(mixture: Mixture, recipe: MixtureRecipe | None = None, seed: int = 0, *,
                  on_look: Callable[[float, Look], None] | None = None) -> MixtureRun:
    """Learns a mixture; on the CPU the same seed and number of steps give the same bits.

    Args:
        on_look: called with the progress 0 … 1 and the latest measurement, some forty times.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    recipe = recipe or MixtureRecipe()
    duel, began = _Duel(mixture, recipe, seed), time.perf_counter()
    curve: list[Look] = []
    step, t = 0, 0.0
    while t < 1:
        losses = duel.step(step, t)
        step += 1
        t = step / recipe.steps if recipe.seconds is None else (time.perf_counter() - began) / recipe.seconds
        if t >= len(curve) / LOOKS or t >= 1:
            curve.append(duel.look(step, *losses))
            if on_look is not None:
                on_look(min(t, 1.0), curve[-1])
    g = duel.average.eval().requires_grad_(False)
    run = MixtureRun(mixture, recipe, seed, g, duel.d.eval().requires_grad_(False), _UNKNOWN, tuple(curve), 0.0)
    run = dataclasses.replace(run, as_drawn=figures_of(run, PACGAN_POINTS))
    if recipe.reject and recipe.packing == 1:
        run = dataclasses.replace(run, rule=_rule(run))
    return dataclasses.replace(run, figures=figures_of(run, PACGAN_POINTS), seconds=time.perf_counter() - began)


def _rule(run: MixtureRun) -> Rejection:
    """By which draws of the finished generator pass, from points that training never used.

    Raises:
        TrainingDiverged: D's logits are not finite.
    """
    seeds = np.arange(RULE_POINTS, dtype=np.int64) + (splitmix64(2 * run.seed + 9) >> 2)
    one_class = torch.zeros(RULE_POINTS, dtype=torch.int64)
    true = run.mixture.sample(RULE_POINTS, 2 * run.seed + 9)
    try:
        return fit(run.word(true), one_class, run.word(run.drawn(seeds)), one_class, 1)
    except BadData as e:
        raise TrainingDiverged(str(e), run.points / 1000) from e


_UNKNOWN = ModeFigures(0, 0, math.nan, math.nan, ())


def figures_of(run: MixtureRun, points: int) -> ModeFigures:
    """Mode figures of so many generated points, by seeds that training never used."""
    return mode_figures(run.sample(points, 2 * run.seed + 1).numpy().astype(np.float64), run.mixture)


class _Duel:
    """Both players on the plane, in units of the mixture's scale."""

    def __init__(self, mixture: Mixture, recipe: MixtureRecipe, seed: int) -> None:
        self.mixture, self.recipe, self.loss = mixture, recipe, loss_by_name(recipe.loss)
        self.rng = torch.Generator().manual_seed(seed)
        self.means = torch.from_numpy(mixture.means).float()
        self.g, self.d = _networks(recipe, seed)
        self.average, _ = _networks(recipe, seed)
        self.averaging = ema.Average(self.g, self.average)
        betas = (recipe.beta1, recipe.beta2)
        self.opt_g, self.opt_d = (torch.optim.Adam(net.parameters(), lr, betas, fused=True) for net, lr in (
            (self.g, recipe.lr_g), (self.d, recipe.lr_d)))

    def real(self, n: int) -> Tensor:
        """True points, (n, 2)."""
        which = torch.randint(len(self.means), (n,), generator=self.rng)
        return (self.means[which] + self.mixture.deviation * torch.randn(n, 2, generator=self.rng)) / self.mixture.scale

    def fake(self, n: int) -> Tensor:
        """Generated points, (n, 2)."""
        return self.g(torch.randn(n, self.recipe.z_dim, generator=self.rng))

    def blurred(self, points: Tensor, t: float) -> Tensor:
        """Points (n, 2) as both networks are shown them at progress t."""
        noise = self.recipe.noise_at(t)
        return points + noise * torch.randn(points.shape, generator=self.rng) if noise > 0 else points

    def score(self, points: Tensor) -> Tensor:
        """D's logits of points (n, 2), `packing` of them at once: (n / packing,)."""
        return self.d(points.view(-1, 2 * self.recipe.packing)).squeeze(1)

    def step(self, step: int, t: float) -> tuple[Tensor, Tensor]:
        """One update of each player at progress t; returns both losses."""
        recipe, n = self.recipe, self.recipe.points_a_step
        for optimizer, lr in ((self.opt_g, recipe.lr_g), (self.opt_d, recipe.lr_d)):
            optimizer.param_groups[0]["lr"] = lr * recipe.lr_scale(t)
        both = torch.cat([self.blurred(self.real(n), t), self.blurred(self.fake(n).detach(), t)])
        loss_d = self.loss.discriminator(*self.score(both).chunk(2))
        penalty = loss_d.new_zeros(())
        if (gamma := recipe.gamma_at(t)) > 0 and step % recipe.penalty_every == 0:   # γ/2 · (R1 + R2)
            gamma *= recipe.penalty_every
            penalty = gamma * squared_gradient_norm(self.score, both).sum() / (2 * recipe.batch_size)
        self.opt_d.zero_grad()
        (loss_d + penalty).backward()
        self.opt_d.step()
        with frozen(self.d):
            real = self.score(self.blurred(self.real(n), t)) if self.loss.paired else None
            loss_g = self.loss.for_generator(real, self.score(self.blurred(self.fake(n), t)))
            self.opt_g.zero_grad()
            loss_g.backward()
        self.opt_g.step()
        self.averaging.update(ema.decay(1, recipe.ema_half_life_steps, step + 1, 0.1))
        return loss_d.detach(), loss_g.detach()

    def look(self, step: int, loss_d: Tensor, loss_g: Tensor) -> Look:
        """Measures the averaged generator; draws from a generator of its own, so that looking changes nothing."""
        losses = loss_d.item(), loss_g.item()
        rng, self.rng = self.rng, torch.Generator().manual_seed(step)
        n = LOOK_POINTS - LOOK_POINTS % self.recipe.packing
        with torch.no_grad():
            made = self.average(torch.randn(n, self.recipe.z_dim, generator=self.rng))
            logits = [self.score(points).double() for points in (self.real(n), made)]
        self.rng = rng
        if not all(torch.isfinite(t).all() for t in (torch.tensor(losses), made, *logits)):
            raise TrainingDiverged(f"the losses are {losses[0]:g} and {losses[1]:g}, points or logits not finite",
                                   step * self.recipe.points_a_step / 1000)
        figures = mode_figures((made * self.mixture.scale).numpy().astype(np.float64), self.mixture)
        return Look(step * self.recipe.points_a_step, *losses, value(*logits), figures.modes, figures.high_quality)


def _networks(recipe: MixtureRecipe, seed: int) -> tuple[nn.Module, nn.Module]:
    """Generator z → point with tanh, discriminator pack → logit with LeakyReLU 0.2 over sines and cosines of its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, waves = [recipe.width] * recipe.depth, _Waves(2 * recipe.packing, recipe.octaves)
        g, d = perceptron([recipe.z_dim, *hidden, 2], nn.Tanh), perceptron([waves.width, *hidden, 1])
        for net in (g, d):
            linear = [layer for layer in net if isinstance(layer, nn.Linear)]
            for layer in linear[:-1]:
                nn.init.kaiming_normal_(layer.weight, 0.2)
                nn.init.zeros_(layer.bias)
            nn.init.uniform_(linear[0].bias, -1.0, 1.0)
        with torch.no_grad():
            for parameter in next(layer for layer in g if isinstance(layer, nn.Linear)).parameters():
                parameter.mul_(recipe.steepness)
    return g, nn.Sequential(waves, d)


class _Waves(nn.Module):
    """Coordinates (n, k) beside their sines and cosines, each octave twice as fine as the one before (Tancik 2020).

    Perceptrons learn coarse shapes first; modes fifty times narrower than the plane are seen at once through these.
    """

    def __init__(self, coordinates: int, octaves: int) -> None:
        super().__init__()
        self.rates = [math.pi / 2 * 2.0**k for k in range(octaves)]
        self.width = coordinates * (1 + 2 * octaves)

    def forward(self, x: Tensor) -> Tensor:
        if not self.rates:
            return x
        waves = torch.cat([rate * x for rate in self.rates], 1)
        return torch.cat([x, waves.sin(), waves.cos()], 1)


# ---- the value function -----------------------------------------------------------------------------------------


def value(real: Tensor, fake: Tensor) -> float:
    """E log σ(a·D(x) + b) + E log(1 - σ(a·D(G(z)) + b)) at the best a ≥ 0 and b; at most 0, -log 4 where D can't tell.

    The line matters: a relativistic D is trained on differences of its logits alone.

    Args:
        real, fake: D's logits, float64 (n,) each.
    """
    logits = torch.cat([real, fake])
    is_real = (torch.arange(len(logits)) < len(real)).double()
    weights = torch.where(is_real > 0, 1 / len(real), 1 / len(fake)).double()
    a, b = logistic_line(logits, is_real, weights)
    return -float(logistic_d(a * real + b, a * fake + b))


def fresh_discriminator_loss(generated: Tensor, real: Tensor, finest: float, steps: int = 600, seed: int = 0) -> float:
    """Summed logistic loss of a newly fitted D on held-out halves of both sets; log 4 = 1.386 where they can't be told
    apart (Goodfellow 2014, theorem 1), towards 0 where they can.

    Args:
        generated, real: float32 (n, 2) each, at least 4 points.
        finest: the length of the smallest detail that D must see, in the points' units; a mixture's deviation.
    """
    scale = real.square().mean().sqrt()
    (fit_x, held_x), (fit_g, held_g) = ((points / scale).chunk(2) for points in (real, generated))
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        waves = _Waves(2, max(1, math.ceil(math.log2(float(scale) / finest))))
        d = nn.Sequential(waves, perceptron([waves.width, 64, 64, 1]))
    optimizer = torch.optim.AdamW(d.parameters(), 2e-3, weight_decay=0.1, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        x, g = (points[torch.randint(len(points), (256,), generator=rng)] for points in (fit_x, fit_g))
        optimizer.zero_grad()
        logistic_d(d(x).squeeze(1), d(g).squeeze(1)).backward()
        optimizer.step()
    with torch.no_grad():
        return float(logistic_d(d(held_x).squeeze(1), d(held_g).squeeze(1)))


# ---- keeping a run ----------------------------------------------------------------------------------------------


def save_run(run: MixtureRun) -> bytes:
    """The run as safetensors bytes: both networks, figures and curve; see `gan.checkpoint`."""
    tensors = {f"{prefix}/{name}": tensor for prefix, net in (("ema", run.generator), ("d", run.discriminator))
               for name, tensor in net.state_dict().items()}
    meta = {"format": 1, "spec": {"family": "plane"}, "mixture": run.mixture.name, "recipe": dataclasses.asdict(run.recipe),
            "seed": run.seed, "figures": dataclasses.asdict(run.figures), "curve": [dataclasses.asdict(look) for look in run.curve],
            "seconds": run.seconds, "rule": None if run.rule is None else dataclasses.asdict(run.rule),
            "as_drawn": None if run.as_drawn is None else dataclasses.asdict(run.as_drawn)}
    return write_tensors(tensors, json.loads(json.dumps(meta)))


def load_run(data: bytes) -> MixtureRun:
    """The run that `save_run` wrote.

    Raises:
        BadCheckpoint: not whole, not ours, or of images instead of points.
    """
    tensors, meta = read_tensors(data)
    spec = meta.get("spec")
    if (family := spec.get("family") if isinstance(spec, dict) else spec) != "plane":
        raise BadCheckpoint(f"the checkpoint is of family {family}, which makes images, not points on the plane")
    try:
        recipe = MixtureRecipe(**meta["recipe"])
        rule = None if meta["rule"] is None else Rejection(**meta["rule"] | {"ceilings": tuple(meta["rule"]["ceilings"])})
        nets = _networks(recipe, 0)
        for prefix, net in zip(("ema", "d"), nets):
            net.load_state_dict({name: tensors[f"{prefix}/{name}"] for name in net.state_dict()})
            net.eval().requires_grad_(False)
        return MixtureRun(MIXTURES[meta["mixture"]], recipe, meta["seed"], *nets, _figures(meta["figures"]),
                          tuple(Look(**look) for look in meta["curve"]), meta["seconds"], rule,
                          None if meta["as_drawn"] is None else _figures(meta["as_drawn"]))
    except (KeyError, TypeError, ValueError, RuntimeError, BadRecipe) as e:
        raise BadCheckpoint(f"the checkpoint's description is not understood: {e}") from e


def _figures(data: dict[str, Any]) -> ModeFigures:
    """Figures as JSON has them."""
    return ModeFigures(**data | {"spread_ratio": tuple(data["spread_ratio"])})
