"""Variational autoencoder after Kingma 2013, conditional on the class.

D(x, y) of the pair is -KL(q(z|x, y) ‖ p(z)): how plain the image's code is.

Options: the fields of `gan.networks.stack.Form`.
"""

import math

import torch
from torch import Tensor, nn

from gan.networks.encoder import Encoder
from gan.networks.spec import NetSpec
from gan.networks.stack import Form, Generator, check_stack
from gan.recipe import Recipe

FORM = Form(class_norm=True, g_blocks=1)


class VariationalEncoder(Encoder):
    """x (n, C, H, W), y (n,) → -KL (n,), nats."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = self.encode(x, y)
        return -kl_to_standard_normal(mean, log_variance)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ(μ² + σ² - 1 - log σ²) in nats, (n,) (Kingma 2013, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class VariationalDecoder(Generator):
    """G of `vae`; pixels are Gaussian with one learned deviation (Rybkin 2021)."""

    def __init__(self, spec: NetSpec, form: Form) -> None:
        super().__init__(spec, form)
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))

    def elbo(self, encoder: Encoder, x: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(log p(x|z), KL) for each row in nats; the evidence's lower bound is their difference.

        log p(x|z) = Σ_pixels -(x - G(z))²/2σ² - log σ - ½ log 2π, z = μ + σ_z·noise.
        """
        mean, log_variance = encoder.encode(x, y)
        rebuilt = self(mean + (0.5 * log_variance).exp() * noise, y).float()
        log_sigma = self.log_sigma.clamp(-5.0, 1.0)
        terms = -0.5 * (x - rebuilt).square() / (2 * log_sigma).exp() - log_sigma - 0.5 * math.log(2 * math.pi)
        return terms.flatten(1).sum(1), kl_to_standard_normal(mean, log_variance)

    def objective(self, encoder: Encoder, x: Tensor, y: Tensor, noise: Tensor,
                  recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
        """-ELBO in nats a pixel, mean over rows, and its parts."""
        likelihood, kl = (part.mean() / x[0].numel() for part in self.elbo(encoder, x, y, noise))
        return recipe.kl_weight * kl - likelihood, {"kl": kl.detach(), "log_likelihood": likelihood.detach()}


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    check_stack(spec, FORM)


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Decoder and encoder of the family `vae`."""
    form = FORM.for_spec(spec)
    return VariationalDecoder(spec, form), VariationalEncoder(spec, form)
