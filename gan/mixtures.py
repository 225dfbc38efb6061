"""Two-dimensional Gaussian mixtures: a ground on which everything about a GAN can be computed.

`two` is ½N((-2, -2), I) + ½N((2, 2), I); `ring8` and `grid25` are PacGAN's (Lin 2018):
eight modes on the unit circle with deviation 0.01, and a 5×5 grid with spacing 2 and deviation 0.05.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gan import ema
from gan.errors import BadRecipe
from gan.losses import logistic_d, loss_by_name
from gan.penalties import squared_gradient_norm
from gan.step import frozen

QUALITY_RADIUS = 3.0         # in deviations; e^(-4.5) of a true mixture's samples lie beyond, so 98.89 % is the ceiling


@dataclass(frozen=True)
class Mixture:
    """Equal-weighted Gaussians: means (k, 2), one deviation for all."""

    name: str
    means: NDArray[np.float64]
    deviation: float

    def sample(self, n: int, seed: int) -> Tensor:
        """n points, float32 (n, 2); follows from the seed alone."""
        rng = np.random.default_rng(seed)
        points = self.means[rng.integers(len(self.means), size=n)] + self.deviation * rng.standard_normal((n, 2))
        return torch.from_numpy(points.astype(np.float32))

    def log_density(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p at points (n, 2), (n,)."""
        squares = ((points[:, None] - self.means) ** 2).sum(-1) / self.deviation**2
        nearest = squares.min(1)
        total = np.exp(-0.5 * (squares - nearest[:, None])).mean(1)
        return np.log(total) - 0.5 * nearest - math.log(2 * math.pi * self.deviation**2)

    @property
    def scale(self) -> float:
        """Root mean square of a coordinate, by which networks see the plane in units near 1."""
        return float(np.sqrt((self.means**2).mean() + self.deviation**2))


def _ring(k: int, radius: float) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(k) / k
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _grid(side: int, spacing: float) -> NDArray[np.float64]:
    steps = spacing * (np.arange(side) - (side - 1) / 2)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)


MIXTURES: dict[str, Mixture] = {
    "two": Mixture("two", np.array([[-2.0, -2.0], [2.0, 2.0]]), 1.0),
    "ring8": Mixture("ring8", _ring(8, 1.0), 0.01),
    "grid25": Mixture("grid25", _grid(5, 2.0), 0.05),
}


@dataclass(frozen=True)
class ModeFigures:
    """What PacGAN's tables report, of n generated points.

    Attributes:
        modes: modes with at least one high-quality point.
        high_quality: share of points within three deviations of a mode's mean.
        reverse_kl: KL(generated ‖ true) in nats over modes, each point counted to its nearest mode.
        spread_ratio: for each mode, deviation of its high-quality points over the true one's; NaN where a mode has none.
    """

    modes: int
    of: int
    high_quality: float
    reverse_kl: float
    spread_ratio: tuple[float, ...]


def mode_figures(points: NDArray[np.float64], mixture: Mixture) -> ModeFigures:
    """Mode coverage and quality of generated points (n, 2)."""
    distances = np.sqrt(((points[:, None] - mixture.means) ** 2).sum(-1))
    nearest, k = distances.argmin(1), len(mixture.means)
    good = distances[np.arange(len(points)), nearest] <= QUALITY_RADIUS * mixture.deviation
    share = np.bincount(nearest, minlength=k) / len(points)
    present = share > 0
    # The deviation of a Gaussian cut at three deviations: √(1 - 4.5·e^(-4.5)/(1 - e^(-4.5))) of the whole one's.
    tail = math.exp(-(QUALITY_RADIUS**2) / 2)
    cut = math.sqrt(1 - QUALITY_RADIUS**2 / 2 * tail / (1 - tail))
    ratios = []
    for mode in range(k):
        mine = points[(nearest == mode) & good]
        ratios.append(float(np.sqrt(mine.var(0).mean()) / (mixture.deviation * cut)) if len(mine) > 1 else math.nan)
    return ModeFigures(
        modes=int((np.bincount(nearest[good], minlength=k) > 0).sum()), of=k, high_quality=float(good.mean()),
        reverse_kl=float((share[present] * np.log(share[present] * k)).sum()), spread_ratio=tuple(ratios))


@dataclass(frozen=True)
class MixtureRecipe:
    """How a mixture is learned: relativistic pairing, R1 + R2, D sees `packing` points at once (PacGAN)."""

    steps: int = 6000
    batch_size: int = 256
    packing: int = 2
    loss: str = "relativistic"
    gamma: float = 0.02
    gamma_end: float = 0.002
    lr: float = 1e-3
    lr_floor: float = 0.02
    beta1: float = 0.0
    beta2: float = 0.99
    width: int = 128
    depth: int = 3
    z_dim: int = 2
    ema_half_life_steps: float = 200.0


class Plane(nn.Module):
    """A multi-layer perceptron with LeakyReLU."""

    def __init__(self, inner: int, outer: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [inner, *[width] * depth]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(sizes[-1], outer)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, 0.2)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.last(x)


@dataclass(frozen=True)
class MixtureRun:
    """A trained pair on the plane, and how it fared."""

    mixture: Mixture
    generator: nn.Module                             # averaged weights
    discriminator: nn.Module
    figures: ModeFigures                             # of 2,500 points, as in PacGAN
    z_dim: int
    curve: tuple[tuple[int, float, float], ...]      # (step, loss of D, loss of G)

    def sample(self, n: int, seed: int) -> Tensor:
        """n generated points in the mixture's own units, float32 (n, 2)."""
        return sample_plane(self.generator, self.mixture, self.z_dim, n, seed)


def train_mixture(mixture: Mixture, recipe: MixtureRecipe | None = None, seed: int = 0) -> MixtureRun:
    """Learns a mixture; on the CPU the same seed gives the same bits.

    Raises:
        BadRecipe: no such loss, or a length below 1.
    """
    recipe = recipe or MixtureRecipe()
    if min(recipe.steps, recipe.batch_size, recipe.packing, recipe.width, recipe.depth, recipe.z_dim) < 1:
        raise BadRecipe("steps, batch_size, packing, width, depth and z_dim must be at least 1")
    duel = _Duel(mixture, recipe, seed)
    curve = []
    for step in range(recipe.steps):
        losses = duel.step(step)
        if step % 100 == 0:
            curve.append((step, losses[0].item(), losses[1].item()))
    g = duel.average.eval().requires_grad_(False)
    points = sample_plane(g, mixture, recipe.z_dim, 2500, seed + 1).numpy().astype(np.float64)
    return MixtureRun(mixture, g, duel.d, mode_figures(points, mixture), recipe.z_dim, tuple(curve))


def sample_plane(g: nn.Module, mixture: Mixture, z_dim: int, n: int, seed: int) -> Tensor:
    """n generated points in the mixture's own units, float32 (n, 2)."""
    with torch.no_grad():
        return g(torch.randn(n, z_dim, generator=torch.Generator().manual_seed(seed))) * mixture.scale


class _Duel:
    """Both players on the plane, in units of the mixture's scale."""

    def __init__(self, mixture: Mixture, recipe: MixtureRecipe, seed: int) -> None:
        self.mixture, self.recipe, self.loss = mixture, recipe, loss_by_name(recipe.loss)
        self.rng = torch.Generator().manual_seed(seed)
        self.means = torch.from_numpy(mixture.means).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.g, self.average = (Plane(recipe.z_dim, 2, recipe.width, recipe.depth) for _ in range(2))
            self.d = Plane(2 * recipe.packing, 1, recipe.width, recipe.depth)
        self.average.load_state_dict(self.g.state_dict())
        self.averaging = ema.Average(self.g, self.average)
        betas = (recipe.beta1, recipe.beta2)
        self.opt_g, self.opt_d = (torch.optim.Adam(n.parameters(), recipe.lr, betas, fused=True) for n in (self.g, self.d))

    def real(self) -> Tensor:
        """Packs of true points, (batch, 2 · packing)."""
        n = self.recipe.batch_size * self.recipe.packing
        which = torch.randint(len(self.means), (n,), generator=self.rng)
        noise = self.mixture.deviation * torch.randn(n, 2, generator=self.rng)
        return ((self.means[which] + noise) / self.mixture.scale).view(self.recipe.batch_size, -1)

    def fake(self) -> Tensor:
        """Packs of generated points, (batch, 2 · packing)."""
        n = self.recipe.batch_size * self.recipe.packing
        return self.g(torch.randn(n, self.recipe.z_dim, generator=self.rng)).view(self.recipe.batch_size, -1)

    def score(self, packs: Tensor) -> Tensor:
        """D's logits, (batch,)."""
        return self.d(packs).squeeze(1)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """One update of each player; returns both losses."""
        recipe, t = self.recipe, step / self.recipe.steps
        rate = recipe.lr * (recipe.lr_floor + (1 - recipe.lr_floor) * 0.5 * (1 + math.cos(math.pi * t)))
        for group in (*self.opt_g.param_groups, *self.opt_d.param_groups):
            group["lr"] = rate
        x, made = self.real(), self.fake().detach()
        loss_d = self.loss.discriminator(self.score(x), self.score(made))
        total = loss_d
        if recipe.gamma > 0:                         # γ/2 · (R1 + R2); one mean over both halves the sum
            gamma = recipe.gamma ** (1 - t) * recipe.gamma_end**t
            total = total + gamma * squared_gradient_norm(self.score, torch.cat([x, made])).mean()
        self.opt_d.zero_grad()
        total.backward()
        self.opt_d.step()
        with frozen(self.d):
            real = self.score(self.real()) if self.loss.paired else None
            loss_g = self.loss.for_generator(real, self.score(self.fake()))
            self.opt_g.zero_grad()
            loss_g.backward()
        self.opt_g.step()
        self.averaging.update(ema.decay(1, recipe.ema_half_life_steps, step + 1, 0.1))
        return loss_d.detach(), loss_g.detach()


def fresh_discriminator_loss(generated: Tensor, real: Tensor, steps: int = 500, seed: int = 0) -> float:
    """Summed logistic loss of a newly fitted D on held-out halves of both sets; log 4 = 1.386 where they can't be told
    apart (Goodfellow 2014, theorem 1), towards 0 where they can.

    Args:
        generated, real: float32 (n, 2) each, at least 4 points.
    """
    scale = real.square().mean().sqrt()
    (fit_x, held_x), (fit_g, held_g) = ((points / scale).chunk(2) for points in (real, generated))
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        d = Plane(2, 1, 64, 2)
    optimizer = torch.optim.AdamW(d.parameters(), 2e-3, weight_decay=0.1, fused=True)
    for _ in range(steps):
        x, g = (points[torch.randint(len(points), (256,), generator=rng)] for points in (fit_x, fit_g))
        optimizer.zero_grad()
        logistic_d(d(x).squeeze(1), d(g).squeeze(1)).backward()
        optimizer.step()
    with torch.no_grad():
        return float(logistic_d(d(held_x).squeeze(1), d(held_g).squeeze(1)))


@dataclass(frozen=True)
class Summary:
    """Mean and standard error of each figure over runs with different seeds."""

    runs: int
    modes: tuple[float, float]
    high_quality: tuple[float, float]
    reverse_kl: tuple[float, float]


def summarise(figures: Sequence[ModeFigures]) -> Summary:
    """Mean ± standard error, as PacGAN reports ten runs; the error of one run is NaN."""
    def pair(values: list[float]) -> tuple[float, float]:
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return float(np.mean(values)), error

    return Summary(len(figures), pair([float(f.modes) for f in figures]), pair([f.high_quality for f in figures]),
                   pair([f.reverse_kl for f in figures]))
