"""Discriminator rejection sampling (Azadi 2019): of a row's draws, keep the first that the discriminator lets pass.

Draws x of p_g that are kept with probability p(x) / (M·p_g(x)), M = max p/p_g, follow p. Where D is at its optimum its
logit is log p(x)/p_g(x). A trained one's is not: hinge and relativistic losses have other optima, and D knows the
training images. So a line a·D(x) + b is fitted first, which tells held-out real from generated images (Platt 1999).

The exact rule may ask for hundreds of draws a row. `keep` relaxes it: the odds of being kept are raised by one factor
for all, so that about that share of draws passes; the worst are still the first to go.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gan.errors import BadData
from gan.sampler import as_float, check_data
from gan.sampling import generate, redraw_seeds, uniforms

MAX_DRAWS = 200
CALIBRATION_DRAWS = 10_000
LEAST_OF_A_CLASS = 32        # draws by which the largest density ratio of a class is known
BATCH = 256
_EPSILON = 1e-9              # ratio at the ceiling is 1 - this much: the odds stay finite


@dataclass(frozen=True)
class Rejection:
    """A fitted rule: log p(x)/p_g(x) ≈ scale · D(x) + offset, and how much of it is passed.

    Attributes:
        ceilings: largest log ratio seen of each class, log M.
        boost: log of the factor on the odds of being kept; 0 is the exact rule.
    """

    scale: float
    offset: float
    ceilings: tuple[float, ...]
    boost: float = 0.0

    def log_ratio(self, logits: Tensor) -> Tensor:
        """log p(x)/p_g(x) by D's logits (n,), float64 (n,)."""
        return self.scale * logits.double() + self.offset

    def acceptance(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probability of being kept, float64 (n,): σ(ℓ - log(1 - e^ℓ) + boost) with ℓ = log ratio - log M ≤ 0."""
        ceilings = torch.tensor(self.ceilings, dtype=torch.float64)[labels.cpu()]
        below = (self.log_ratio(logits.cpu()) - ceilings).clamp_max(-_EPSILON)
        return torch.sigmoid(below - torch.log(-torch.expm1(below)) + self.boost)


@dataclass(frozen=True)
class Kept:
    """What passed; row i belongs to the i-th label and seed that were asked for."""

    samples: Tensor
    seeds: NDArray[np.int64]                         # of the draw that was kept
    draws: NDArray[np.int64]                         # made for the row
    given_up: NDArray[np.bool_]                      # none passed: the likeliest to pass is here


Draw = Callable[[Tensor, NDArray[np.int64]], Tensor]     # labels (n,), seeds (n,) → samples (n, …)
Score = Callable[[Tensor, Tensor], Tensor]               # samples (n, …), labels (n,) → D's logits (n,)


def fit(real_logits: Tensor, real_labels: Tensor, fake_logits: Tensor, fake_labels: Tensor, classes: int,
        keep: float | None = None) -> Rejection:
    """The rule by D's logits of held-out real and of generated samples; every class counts alike.

    Args:
        keep: share of draws to be kept, in (0, 1); None: the exact rule.

    Raises:
        BadData: no class that both sets have, a logit that is not finite, or `keep` out of range.
    """
    if keep is not None and not 0 < keep < 1:
        raise BadData(f"keep {keep}: must be above 0 and below 1")
    logits = torch.cat([real_logits, fake_logits]).double().cpu()
    if not torch.isfinite(logits).all():
        raise BadData("the discriminator's logits are not finite: it can't judge samples")
    labels, is_real = torch.cat([real_labels, fake_labels]).cpu(), torch.arange(len(logits)) < len(real_logits)
    counts = torch.stack([torch.bincount(labels[mine], minlength=classes) for mine in (is_real, ~is_real)])
    shared = (counts > 0).all(0)
    if not shared.any():
        raise BadData("held-out and generated samples have no class in common")
    weights = (shared / counts.clamp_min(1))[(~is_real).long(), labels] / int(shared.sum())
    scale, offset = logistic_line(logits, is_real.double(), weights)
    ratios = scale * logits[~is_real] + offset
    ceilings = torch.full((classes,), float(ratios.max()), dtype=torch.float64)
    found = torch.full((classes,), -torch.inf, dtype=torch.float64)
    found.scatter_reduce_(0, labels[~is_real], ratios, "amax")
    exact = Rejection(scale, offset, tuple(torch.where(found > -torch.inf, found, ceilings).tolist()))
    return exact if keep is None else _relaxed(exact, fake_logits.cpu(), fake_labels.cpu(), keep)


def logistic_line(x: Tensor, target: Tensor, weights: Tensor, steps: int = 50) -> tuple[float, float]:
    """(a, b) that minimise Σ w·(-t log σ(a·x + b) - (1 - t) log(1 - σ(a·x + b))), by Newton's method in float64.

    A slight pull towards a = 0 keeps separable sets finite; a falling line, which no D means, becomes a flat one.
    """
    middle, spread = x.mean(), x.std(correction=0).clamp_min(1e-12)
    design = torch.stack([(x - middle) / spread, torch.ones_like(x)], 1)
    line = torch.zeros(2, dtype=torch.float64)
    ridge = torch.diag(torch.tensor([1e-4, 1e-12], dtype=torch.float64))
    for _ in range(steps):
        p = torch.sigmoid(design @ line)
        gradient = design.T @ (weights * (p - target)) + ridge @ line
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + ridge
        step = torch.linalg.solve(hessian, gradient)
        line = line - step * min(1.0, 4.0 / float(step.abs().max().clamp_min(1e-12)))    # far from the optimum: short
        if step.abs().max() < 1e-10:
            break
    if line[0] <= 0:
        real, all_of = (weights * target).sum(), weights.sum()
        return 0.0, float(torch.logit(real / all_of))
    return float(line[0] / spread), float(line[1] - line[0] * middle / spread)


def _relaxed(exact: Rejection, logits: Tensor, labels: Tensor, keep: float) -> Rejection:
    """The same rule with the boost that keeps a share `keep` of these draws, found by bisection."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        rule = Rejection(exact.scale, exact.offset, exact.ceilings, middle)
        if float(rule.acceptance(logits, labels).mean()) < keep:
            low = middle
        else:
            high = middle
    return Rejection(exact.scale, exact.offset, exact.ceilings, high)


def sift(draw: Draw, score: Score, labels: Tensor, seeds: NDArray[np.int64], rule: Rejection,
         max_draws: int = MAX_DRAWS) -> Kept:
    """Draws each row until one passes; what a row becomes follows from its label and seed alone.

    The first draw is the one that the row's seed gives without rejection.
    """
    n = len(labels)
    drawn, draws = np.asarray(seeds, np.int64).copy(), np.zeros(n, np.int64)
    best, open_rows = np.full(n, -1.0), np.arange(n)
    samples: Tensor | None = None
    for attempt in range(max_draws):
        if not len(open_rows) and samples is not None:
            break
        tried, y = redraw_seeds(seeds[open_rows], attempt), labels[torch.from_numpy(open_rows)]
        made = draw(y, tried)
        chance = rule.acceptance(score(made, y), y).numpy()
        passed = uniforms(tried) < chance
        samples = torch.empty(n, *made.shape[1:], dtype=made.dtype) if samples is None else samples
        draws[open_rows] += 1
        better = passed | (chance > best[open_rows])
        rows = open_rows[better]
        samples[torch.from_numpy(rows)] = made[torch.from_numpy(better)]
        drawn[rows], best[rows] = tried[better], chance[better]
        open_rows = open_rows[~passed]
    given_up = np.zeros(n, bool)
    given_up[open_rows] = True
    return Kept(torch.empty(0) if samples is None else samples, drawn, draws, given_up)


class Critic:
    """A trained discriminator as a judge of single uint8 images.

    A discriminator that compares the rows of a batch (`minibatch_std`) sees each row beside the same few companions, so
    that its word on a row doesn't depend on the others.
    """

    def __init__(self, d: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.d = d.eval()
        beside = max(0, int(getattr(d, "minibatch_std", 0)) - 1)
        rows = torch.arange(beside) % max(1, len(images))
        self.companions, self.their_labels = as_float(images[rows]), labels[rows]

    @torch.inference_mode()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits float32 (n,) of uint8 images (n, C, H, W) on the CPU."""
        if len(images) == 0:
            return torch.empty(0)
        device, group = next(self.d.parameters()).device, 1 + len(self.companions)
        parts = []
        for x, y in zip(images.split(max(1, BATCH // group)), labels.split(max(1, BATCH // group))):
            rows = torch.cat([as_float(x)[:, None], self.companions.expand(len(x), *self.companions.shape)], 1)
            beside = torch.cat([y[:, None], self.their_labels.expand(len(y), -1)], 1)
            logits = self.d(rows.flatten(0, 1).to(device), beside.flatten().to(device))
            parts.append(logits.view(-1, group)[:, 0].float().cpu())
        return torch.cat(parts)


class RejectionSampler:
    """Images of a generator that pass its discriminator, by a rule fitted on held-out images.

    Args:
        g, d: as `checkpoint.load_generator` gives them.
        images, labels: held-out real images uint8 (N, C, H, H), labels int64 (N,); never the training images.
        keep: see `fit`.
        truncation: see `sampling.generate`; the rule is fitted to the truncated generator.
        seed: of the draws that the rule is fitted to.

    Raises:
        BadData: the images are not of the networks' form, or see `fit`.
    """

    def __init__(self, g: nn.Module, d: nn.Module, images: Tensor, labels: Tensor, classes: int, *,
                 keep: float | None = None, truncation: float = 1.0, seed: int = 0) -> None:
        check_data(images, labels, classes)
        self.g, self.truncation, self.critic = g, truncation, Critic(d, images, labels)
        present = torch.unique(labels)
        each = max(LEAST_OF_A_CLASS, math.ceil(CALIBRATION_DRAWS / len(present)))
        y = present.repeat_interleave(each)
        made = self._draw(y, redraw_seeds(np.arange(len(y), dtype=np.int64) + seed, 1))
        if images.shape[1:] != made.shape[1:]:
            raise BadData(f"the held-out images are {tuple(images.shape[1:])}, the networks' {tuple(made.shape[1:])}: prepare "
                          "them as the training images were")
        self.rule = fit(self.critic(images, labels), labels, self.critic(made, y), y, classes, keep)

    def _draw(self, labels: Tensor, seeds: NDArray[np.int64]) -> Tensor:
        return generate(self.g, labels, seeds, BATCH, truncation=self.truncation)

    def sample(self, labels: Tensor, seeds: NDArray[np.int64], max_draws: int = MAX_DRAWS) -> Kept:
        """uint8 images that passed, one for each label int64 (n,) and seed int64 (n,)."""
        return sift(self._draw, self.critic, labels, seeds, self.rule, max_draws)
