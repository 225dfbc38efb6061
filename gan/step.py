"""One update of both players; reads like the maths.

T is the augmentation, drawn anew for each turn; x are real images, y their labels, which the generated images share.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gan import penalties
from gan.augment import Draw, apply
from gan.errors import BadRecipe
from gan.frozen import FrozenFeatures, can_be_shared
from gan.losses import loss_by_name
from gan.networks.norm import Embedding, label_tables, pool_, set_label_strength
from gan.networks.projected import Projected
from gan.recipe import Recipe
from gan.sampler import Sampler, as_float
from gan.workers import Workers

READINGS = ("loss_d", "loss_g", "real_logit", "fake_logit")
GRADIENTS = ("gradient_real", "gradient_fake")       # E‖∇ₓD‖², where a penalty computes it
Seen = tuple[Tensor, Tensor] | None                  # φ of real and generated images, where both turns share them


@dataclass
class Players:
    """Both networks and what updates them. For autoencoding families G decodes and D encodes."""

    g: nn.Module
    d: nn.Module
    opt_g: torch.optim.Optimizer
    opt_d: torch.optim.Optimizer


@dataclass(frozen=True)
class Moment:
    """What schedules say about this step."""

    index: int
    gamma_scale: float | Tensor = 1.0                # tensors where the step is recorded or traced
    augment_p: float | Tensor = 0.0
    measure: bool = False                            # also read gradient norms
    label_strength: float = 1.0


class Update:
    """One step of training: a turn of the discriminator and, every `d_steps`-th time, one of the generator."""

    def __init__(self, players: Players, recipe: Recipe, sampler: Sampler, workers: Workers) -> None:
        self.players, self.recipe, self.sampler, self.workers = players, recipe, sampler, workers
        self.loss = loss_by_name(recipe.loss)
        self.device = sampler.images.device
        self.z_dim = int(players.g.z_dim)            # type: ignore[arg-type]
        self.frozen: FrozenFeatures | None = None
        if isinstance(players.d, Projected) and can_be_shared(recipe):
            self.frozen = FrozenFeatures(players.d, sampler.images, recipe)
        self.class_noise = torch.tensor([recipe.class_noise_of(int(n)) for n in sampler.counts], device=self.device)
        tables = [m for m in players.g.modules() if isinstance(m, Embedding)]
        self.noisy = tables if recipe.class_noise > 0 else []
        self.of_labels = {network: label_tables(network) for network in (players.g, players.d)}
        self.pooling = torch.tensor([recipe.class_pooling_of(int(n)) for n in sampler.counts], device=self.device)
        if not tables and (recipe.class_noise > 0 or recipe.label_ramp > 0 or recipe.class_pooling > 0):
            raise BadRecipe("label_ramp, class_noise and class_pooling work on class embeddings, which this family's generator has none of")

    def __call__(self, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Updates the players.

        Args:
            control: small figures (k,) to be averaged over the workers on the way.

        Returns:
            readings by name (scalars, detached, mean over the workers) and the averaged control.
        """
        self.begin(now)
        return self.turn(now, control)

    def begin(self, now: Moment) -> None:
        """What a step needs from the host: its random numbers, and how much labels count."""
        self.sampler.begin(now.index)
        if self.recipe.label_ramp > 0:
            for network in (self.players.g, self.players.d):
                set_label_strength(network, now.label_strength)

    def turn(self, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The step itself, after `begin`: tensors alone, nothing that waits for the device."""
        if self.recipe.objective != "adversarial":
            return self._autoencode(now, control)
        x, y = self._real()
        turn_of_g = (now.index + 1) % self.recipe.d_steps == 0
        with torch.set_grad_enabled(turn_of_g and not self.recipe.fresh_g_batch), self._cast():
            fake = self._fake(y)
            seen = None if self.frozen is None else self.frozen(x, self.sampler.rows, fake)
        readings, control = self._discriminate(x, fake.detach(), y, now, control, seen)
        if turn_of_g:
            readings |= self._generate(x, fake, y, now, seen)
        return readings, control

    def _discriminate(
        self, x: Tensor, fake: Tensor, y: Tensor, now: Moment, control: Tensor, seen: Seen
    ) -> tuple[dict[str, Tensor], Tensor]:
        d, recipe = self.players.d, self.recipe
        drawn = self.sampler.augmentation(recipe.augment, now.augment_p, 2)
        # D(T(x)), D(T(G(z)))
        with self._cast():
            real_logits, fake_logits = self._logits(x, fake, y, drawn, None if seen is None else (seen[0], seen[1].detach()))
        loss = self.loss.discriminator(real_logits, fake_logits)
        _zero(self.players.opt_d)
        loss.backward()
        gradients = self._penalise(x, fake, y, drawn, now)
        logits = (real_logits.detach().mean(), fake_logits.detach().mean())
        figures = torch.stack([loss.detach(), *logits, *gradients.values()])
        shared = self.workers.average_(d, torch.cat([figures, control]))
        readings = dict(zip(("loss_d", "real_logit", "fake_logit", *gradients), shared))
        if now.measure:
            readings["grad_norm_d"] = gradient_norm(d)
        self._descend(d, self.players.opt_d, recipe.lr_d)
        if recipe.clip > 0:
            penalties.clip_weights_(d, recipe.clip)
        return readings, shared[len(figures):]

    def _generate(self, x: Tensor, fake: Tensor, y: Tensor, now: Moment, seen: Seen) -> dict[str, Tensor]:
        g, d, recipe = self.players.g, self.players.d, self.recipe
        if recipe.fresh_g_batch:
            x, y = self._real()
            with self._cast():
                fake = self._fake(y)
        drawn = self.sampler.augmentation(recipe.augment, now.augment_p, 2 if self.loss.paired else 1)
        weights = d.weights if isinstance(d, Projected) else ()
        with frozen(d), self._cast():
            if self.loss.paired:
                real_logits, fake_logits = self._logits(x, fake, y, drawn, seen)
                loss = self.loss.for_generator(real_logits, fake_logits, weights)
            else:
                logits = judged(d, apply(fake, drawn), y, None if seen is None else seen[1])
                loss = self.loss.for_generator(None, logits, weights)
            _zero(self.players.opt_g)
            loss.backward()
        readings = {"loss_g": self.workers.average_(g, loss.detach().view(1))[0]}
        if now.measure:
            readings["grad_norm_g"] = gradient_norm(g)
        self._descend(g, self.players.opt_g, recipe.lr_g)
        return readings

    def _descend(self, network: nn.Module, optimizer: torch.optim.Optimizer, highest: float) -> None:
        """The optimizer's step, and the rare classes' towards the others."""
        optimizer.step()
        if self.recipe.class_pooling > 0:
            pool_(self.of_labels[network], self.pooling * (optimizer.param_groups[0]["lr"] / highest))

    def _fake(self, y: Tensor) -> Tensor:
        """G(z, y), z ~ N(0, I), y's embedding blurred for rare classes; float32."""
        z = self.sampler.normal(self.z_dim)
        for table in self.noisy:
            table.noise = self.sampler.normal(table.embedding_dim) * self.class_noise[y][:, None]
        try:
            made: Tensor = self.players.g(z, y)
            return made.float()
        finally:
            for table in self.noisy:
                table.noise = None

    def _logits(self, x: Tensor, fake: Tensor, y: Tensor, drawn: Draw | None, seen: Seen) -> tuple[Tensor, Tensor]:
        """D(T(x)) and D(T(G(z))), (n,) or (n, k) each in float32, as one batch or as two."""
        d = self.players.d
        both = apply(torch.cat([x, fake]), drawn)
        if self.recipe.joint_pass:
            real_logits, fake_logits = judged(d, both, torch.cat([y, y]), None if seen is None else torch.cat(seen)).chunk(2)
            return real_logits, fake_logits
        of_real, of_fake = (None, None) if seen is None else seen
        real, generated = both.chunk(2)
        return judged(d, real, y, of_real), judged(d, generated, y, of_fake)

    def _penalise(self, x: Tensor, fake: Tensor, y: Tensor, drawn: Draw | None, now: Moment) -> dict[str, Tensor]:
        """Adds the gradient of γ₁/2·E‖∇D(x)‖² + γ₂/2·E‖∇D(G(z))‖² or of WGAN-GP's penalty to that of D's weights.

        ∇ at the images before augmentation, through it, in `penalty_precision`; every `penalty_every`-th step, that many times as
        heavy. Without `joint_pass` real and fake have a graph each, the first freed before the second is built: half the memory.
        """
        recipe = self.recipe
        if now.index % recipe.penalty_every:
            return {}
        streams = [(weight, image, name, block) for weight, image, name, block in (
            (recipe.r1_gamma, x, GRADIENTS[0], 0), (recipe.r2_gamma, fake, GRADIENTS[1], 1)) if weight > 0]
        found: dict[str, Tensor] = {}
        for group in [streams] if recipe.joint_pass else [[stream] for stream in streams]:
            if group:
                found |= self._penalise_norms(group, y, drawn, now)
        if recipe.wgan_gp_weight:
            part = None if drawn is None else drawn.rows(slice(0, len(x)))
            surplus = penalties.gradient_penalty(self._score(y, part), x, fake, self.sampler.uniform())
            (recipe.penalty_every * recipe.wgan_gp_weight * surplus.mean()).backward()
        return found

    def _penalise_norms(self, streams: list[tuple[float, Tensor, str, int]], y: Tensor, drawn: Draw | None, now: Moment
                        ) -> dict[str, Tensor]:
        """The same for (γ, images, name, number of their block of rows in `drawn`), as one batch: E‖∇D‖² by name."""
        n, stride = len(y), max(1, round(1 / self.recipe.penalty_share))
        rows = torch.cat([torch.arange(b * n, (b + 1) * n, stride, device=y.device) for *_, b in streams])
        part = None if drawn is None else drawn.rows(rows)
        images = torch.cat([image[::stride] for _, image, _, _ in streams])
        norms = self._squared_norms(images, y[::stride].repeat(len(streams)), part, len(streams), stride)
        total, found = y.new_zeros((), dtype=norms.dtype), {}
        for (gamma, _, name, _), norm in zip(streams, norms.chunk(len(streams))):
            total = total + self.recipe.penalty_every * now.gamma_scale * gamma / 2 * norm.mean()
            found[name] = norm.detach().mean()
        total.backward()
        return found

    def _squared_norms(self, images: Tensor, y: Tensor, drawn: Draw | None, streams: int, stride: int) -> Tensor:
        score = self._score(y, drawn)
        if self.recipe.penalty_step == 0:
            return penalties.squared_gradient_norm(score, images)
        direction = torch.cat([self.sampler.normal(*images.shape[1:])[::stride] for _ in range(streams)])
        twice = None if drawn is None else drawn.rows(torch.arange(len(y), device=y.device).repeat(2))
        score = self._score(y.repeat(2), twice)
        return penalties.directional_gradient_norm(score, images, direction, self.recipe.penalty_step)

    def _score(self, y: Tensor, drawn: Draw | None) -> Callable[[Tensor], Tensor]:
        def score(images: Tensor) -> Tensor:
            with self._cast(self.recipe.penalty_precision):
                return self.players.d(apply(images, drawn), y).float()

        return score

    def _autoencode(self, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Encoder and decoder together; see `gan.networks.vae` and `gan.networks.autoencoder`."""
        g, d = self.players.g, self.players.d
        x, y = self._real()
        noise = self.sampler.normal(self.z_dim)
        with self._cast():
            loss, parts = g.objective(d, x, y, noise, self.recipe)  # type: ignore[operator]
        _zero(self.players.opt_g)
        _zero(self.players.opt_d)
        loss.backward()
        figures = torch.stack([loss.detach(), *parts.values()])
        shared = self.workers.average_(d, torch.cat([figures, control]))
        self.workers.average_(g, x.new_zeros(1))
        readings = dict(zip(("loss_g", *parts), shared)) | {"loss_d": shared[0]}
        if now.measure:
            readings |= {"grad_norm_d": gradient_norm(d), "grad_norm_g": gradient_norm(g)}
        self.players.opt_d.step()
        self.players.opt_g.step()
        return readings, shared[len(figures):]

    def _real(self) -> tuple[Tensor, Tensor]:
        images, y = self.sampler.real()
        x = as_float(images)
        return x.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else x, y

    def _cast(self, precision: str | None = None) -> contextlib.AbstractContextManager[object]:
        if (precision or self.recipe.precision) == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)     # as it is while a step is traced


def judged(d: nn.Module, x: Tensor, y: Tensor, features: Tensor | None = None) -> Tensor:
    """Logits that a loss is taken of, float32: (n,), or (n, 2) of a discriminator of two parts with a loss each.

    Penalties, like scores, are of the discriminator as a whole: of its parts' sum.
    """
    logits: Tensor = d(x, y, each=bool(d.weights), features=features) if isinstance(d, Projected) else d(x, y)
    return logits.float()


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for the network's weights meanwhile: the generator's turn needs those of its input alone."""
    learning = [p for p in network.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _zero(optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)


def gradient_norm(network: nn.Module) -> Tensor:
    """‖∇‖ over all weights that have a gradient, scalar."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
