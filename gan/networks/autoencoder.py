"""Autoencoder: squared error, and a Gaussian fitted to the codes so that it can be sampled from.

D(x, y) of the pair is -½‖code‖².

Options: the fields of `gan.networks.stack.Form`.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gan.networks.encoder import Encoder
from gan.networks.norm import one_hot
from gan.networks.spec import NetSpec
from gan.networks.stack import Form, Generator, check_stack
from gan.recipe import Recipe

CODE_MOMENTUM = 0.01
FORM = Form(class_norm=True, g_blocks=1)


class PointEncoder(Encoder):
    """The plain autoencoder's: the code is the mean."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = self.encode(x, y)
        return -0.5 * mean.square().sum(1) + 0 * log_variance.sum(1)


class PointDecoder(Generator):
    """G of `autoencoder`: decodes codes drawn from a Gaussian that was fitted to the training images' codes.

    Each class has its mean, all share one covariance; both are running averages over the batches.
    """

    def __init__(self, spec: NetSpec, form: Form) -> None:
        super().__init__(spec, form)
        self.register_buffer("code_mean", torch.zeros(spec.classes, spec.z_dim))
        self.register_buffer("code_covariance", torch.eye(spec.z_dim))
        self.code_mean: Tensor
        self.code_covariance: Tensor

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        jitter = 1e-4 * torch.eye(z.shape[1], device=z.device)
        factor, _ = torch.linalg.cholesky_ex(self.code_covariance + jitter)
        return self.decode(self.code_mean[y] + z @ factor.t(), y)

    def decode(self, code: Tensor, y: Tensor) -> Tensor:
        """Codes (n, z_dim) → images (n, C, H, W)."""
        return super().forward(code, y)

    def objective(self, encoder: Encoder, x: Tensor, y: Tensor, noise: Tensor,
                  recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error a pixel, with a little noise on the code so that near codes give near images."""
        code, unused = encoder.encode(x, y)
        with torch.no_grad():
            moments = torch.cat([one_hot(y, len(self.code_mean), code.dtype), code], 1)
            self._follow(moments, len(self.code_mean))
            scale = self.code_covariance.diagonal().clamp_min(1e-6).sqrt()
        rebuilt = self.decode(code + 0.1 * scale * noise, y).float()
        error = (x - rebuilt).square().mean()
        # The log variance is no part of this model; a zero gradient keeps its weights in every worker's step.
        return error + 1e-4 * code.square().mean() + 0 * unused.sum(), {"squared_error": error.detach()}

    def _follow(self, rows: Tensor, classes: int) -> None:
        rows = all_workers(rows) if self.norms[0].workers is not None else rows
        member, code = rows[:, :classes], rows[:, classes:]
        count = member.sum(0)
        seen = count > 0
        batch_mean = (member.t() @ code) / count.clamp_min(1)[:, None]
        weight = (1 - (1 - CODE_MOMENTUM) ** count)[:, None] * seen[:, None]
        self.code_mean.lerp_(batch_mean, weight)
        offset = code - member @ self.code_mean
        self.code_covariance.lerp_(offset.t() @ offset / len(code), CODE_MOMENTUM)


def all_workers(rows: Tensor) -> Tensor:
    """Every worker's rows, stacked in the order of ranks."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    check_stack(spec, FORM)


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Decoder and encoder of the family `autoencoder`."""
    form = FORM.for_spec(spec)
    return PointDecoder(spec, form), PointEncoder(spec, form)
