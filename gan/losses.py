"""Adversarial losses as pure functions of logits.

Every function takes logits of shape (n,), or (n, k) of k discriminators whose losses are averaged, and returns a scalar to be
minimised. `real` is D(x), `fake` is D(G(z)) and
σ is the logistic function, so that log σ(a) = -softplus(-a). Row i of `real` and row i of `fake` carry the same label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu, softplus

from gan.errors import BadRecipe


def logistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """-E log σ(D(x)) - E log(1 - σ(D(G(z)))); log 4 where D can't tell (Goodfellow 2014, eq. 1)."""
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_g(fake: Tensor) -> Tensor:
    """E log(1 - σ(D(G(z)))), the saturating form (Goodfellow 2014, eq. 1)."""
    return -softplus(fake).mean()


def nonsaturating_g(fake: Tensor) -> Tensor:
    """-E log σ(D(G(z))) (Goodfellow 2014, section 3)."""
    return softplus(-fake).mean()


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (Lim & Ye 2017; Miyato 2018)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x) (Arjovsky 2017); D must be kept Lipschitz by clipping or a penalty."""
    return fake.mean() - real.mean()


def linear_g(fake: Tensor) -> Tensor:
    """-E D(G(z)), the generator's side of the hinge and Wasserstein losses."""
    return -fake.mean()


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-(D(x) - D(G(z)))), each real paired with one fake (Jolicoeur-Martineau 2018; R3GAN 2024)."""
    return softplus(fake - real).mean()


def relativistic_g(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-(D(G(z)) - D(x))), the mirror image of `relativistic_d`."""
    return softplus(real - fake).mean()


@dataclass(frozen=True)
class Loss:
    """Both players' losses. `paired`: the generator's loss needs real logits too."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[..., Tensor]
    paired: bool = False

    def for_generator(self, real: Tensor | None, fake: Tensor, weights: Sequence[float] = ()) -> Tensor:
        """The generator's loss; `real` is read only where the loss is paired.

        Args:
            weights: of the k discriminators whose logits (n, k) are given, none of them given: each counts as much.
        """
        if weights:
            parts = [self.for_generator(None if real is None else real[:, i], fake[:, i]) for i in range(len(weights))]
            return sum((w * part for w, part in zip(weights, parts)), start=fake.new_zeros(())) / sum(weights)
        return self.generator(real, fake) if self.paired else self.generator(fake)


LOSSES: dict[str, Loss] = {
    "minimax": Loss(logistic_d, minimax_g),
    "nonsaturating": Loss(logistic_d, nonsaturating_g),
    "hinge": Loss(hinge_d, linear_g),
    "wasserstein": Loss(wasserstein_d, linear_g),
    "relativistic": Loss(relativistic_d, relativistic_g, paired=True),
}


def loss_by_name(name: str) -> Loss:
    """The loss pair called `name`.

    Raises:
        BadRecipe: no such loss.
    """
    if name not in LOSSES:
        raise BadRecipe(f"loss {name!r} is unknown; known: {', '.join(LOSSES)}")
    return LOSSES[name]
