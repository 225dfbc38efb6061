"""Batch normalisation that can be conditional on the class and can share its statistics among workers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.networks.image_side import conv2d
from gan.workers import Workers

FEW_CLASSES = 256            # the logits of so many labels cost less than a lookup of one label's vector for each row


class _SumOverWorkers(torch.autograd.Function):
    """Σ over workers; the gradient of a sum that every worker uses is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, workers: Workers) -> Tensor:
        ctx.workers = workers
        total = x.clone()
        workers.sum_(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        ctx.workers.sum_(total)
        return total, None


class _SharedNorm(torch.autograd.Function):
    """(x - mean) / std · gain + bias by the statistics of all workers' batches, each equally large, on CPUs.

    x (n, C, …) float32 or bfloat16, gain and bias (C,) float32. Each pass over x is one of torch's own kernels, for its statistics, for a
    map that is linear by channel and for the derivatives by fixed statistics: what the statistics themselves contribute to the
    derivative, -(Σg + x̂·Σ(g·x̂)) · gain / (std · N), is such a map of x too (Ioffe & Szegedy 2015, section 3). Sums are over all
    workers' N numbers of a channel. Also returns mean and variance (C,), without derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, workers: Workers) -> tuple[Tensor, Tensor, Tensor]:
        unused = x.new_zeros(x.shape[1], dtype=torch.float32), x.new_ones(x.shape[1], dtype=torch.float32)
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, *unused, 0.0)
        mean, square = _over_workers(torch.stack([mean, variance + mean.square()]), workers) / workers.world
        variance = (square - mean.square()).clamp_min(0.0)
        ctx.save_for_backward(x, gain, mean, variance)
        ctx.eps, ctx.workers = eps, workers
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, gain, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gain, mean, variance = ctx.saved_tensors
        by_x, by_gain, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, gain, mean, variance, None, None, False, ctx.eps, [True, True, True])
        dots, sums = _over_workers(torch.stack([by_gain, by_bias]), ctx.workers) * (x.shape[1] / (x.numel() * ctx.workers.world))
        precision = torch.rsqrt(variance + ctx.eps)
        slope = gain * precision.square() * dots     # the map that is taken away: slope · x + what it is at x = 0
        intercept = gain * precision * sums - slope * mean
        taken = F.batch_norm(x, torch.zeros_like(mean), torch.ones_like(mean), slope, intercept, False, 0.0, 0.0)
        return by_x.sub_(taken), by_gain, by_bias, None, None


def _over_workers(figures: Tensor, workers: Workers) -> Tensor:
    """Their sum over the workers, in place."""
    workers.sum_(figures)
    return figures


class BatchNorm(nn.Module):
    """(x - mean) / std · gain(y) + bias(y) over (n, C, …), float32 statistics of the whole batch.

    With `classes` 1 gain and bias are common to all labels. `workers` is set by the loop when several hold a slice of
    the batch each: they then normalise by the whole batch, as one would. `strength`: see `Embedding`.
    """

    def __init__(self, channels: int, classes: int = 1, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps, self.strength = momentum, eps, 1.0
        self.workers: Workers | None = None
        self.gain = nn.Parameter(torch.ones(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes, channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x (n, C, …) and labels (n,) where conditional."""
        conditional = len(self.gain) > 1 and y is not None
        if self.training and self.workers is not None and x.device.type == "cpu":
            out = self._normalise_here(x, self.workers, conditional)
            if not conditional:
                return out
        elif self.training and self.workers is not None:
            out = self._normalise_shared(x, self.workers)
        else:
            gain, bias = (None, None) if conditional else (self.gain[0], self.bias[0])
            out = F.batch_norm(x, self.mean, self.variance, gain, bias, self.training, self.momentum, self.eps)
            if not conditional:
                return out
        shape = (-1, x.shape[1], *[1] * (x.dim() - 2))
        index = torch.zeros(1, dtype=torch.long, device=x.device) if y is None or not conditional else y
        gain, bias = (_blended(p, F.embedding(index, p), self.strength).view(shape).to(out.dtype) for p in (self.gain, self.bias))
        return (out * gain).add_(bias)               # addcmul is four times slower: it broadcasts item by item

    def _normalise_here(self, x: Tensor, workers: Workers, conditional: bool) -> Tensor:
        """By the statistics of workers on CPUs; with gain and bias where they are common to all labels."""
        gain, bias = (torch.ones_like(self.mean), torch.zeros_like(self.mean)) if conditional else (self.gain[0], self.bias[0])
        out, mean, variance = _SharedNorm.apply(x, gain, bias, self.eps, workers)
        self._follow(mean, variance, workers.world * x.numel() / x.shape[1])
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, n: float | Tensor) -> None:
        """Running statistics after a batch of n numbers a channel."""
        self.mean.lerp_(mean, self.momentum)
        self.variance.lerp_(variance * (n / (n - 1)), self.momentum)

    def _normalise_shared(self, x: Tensor, workers: Workers) -> Tensor:
        axes = [0, *range(2, x.dim())]
        wide = x.float()
        count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        sums = _SumOverWorkers.apply(torch.cat([wide.sum(axes), wide.square().sum(axes), count]), workers)
        mean, square = (sums[:-1] / sums[-1].detach()).chunk(2)
        variance = (square - mean.square()).clamp_min(0.0)
        self._follow(mean, variance, sums[-1])
        shape = (1, -1, *[1] * (x.dim() - 2))
        return ((wide - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)).to(x.dtype)


def share_statistics(network: nn.Module, workers: Workers | None) -> None:
    """Every `BatchNorm` in the network normalises by all workers' batches, or by its own (None)."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.workers = workers


def _blended(table: Tensor, rows: Tensor, strength: float) -> Tensor:
    """Rows of a table with one row a label, drawn towards the mean of all: at 0 the label says nothing."""
    return rows if strength >= 1 else torch.lerp(table.mean(0), rows, strength)


class Embedding(nn.Embedding):
    """One learned vector a label, (n,) → (n, dim), initially N(0, std²).

    Two things that a training step may set. `strength`, 1 where labels count in full, 0 where all are alike (Shahbazi 2022:
    learn what classes share before what sets them apart). `noise` (n, dim), added to the next vectors in units of the table's
    root mean square, so that a rare class fills a region instead of a point (NoisyTwins, Rangwani 2023).
    """

    def __init__(self, classes: int, dim: int, std: float) -> None:
        super().__init__(classes, dim)
        self.strength = 1.0
        self.noise: Tensor | None = None
        nn.init.normal_(self.weight, 0.0, std)

    def forward(self, y: Tensor) -> Tensor:
        """Labels (n,)."""
        out = _blended(self.weight, super().forward(y), self.strength)
        if self.noise is not None:
            out = out + self.noise * self.weight.detach().square().mean().sqrt()
        return out

    def every(self) -> Tensor:
        """All labels' vectors, (classes, dim), without noise."""
        return _blended(self.weight, self.weight, self.strength)


def set_label_strength(network: nn.Module, strength: float) -> None:
    """How much labels count from now on, 0 … 1, wherever the network learns them."""
    for module in network.modules():
        if isinstance(module, Embedding | BatchNorm):
            module.strength = strength


def label_tables(network: nn.Module) -> list[Tensor]:
    """What the network learns of each label alone: parameters with one row a label."""
    found: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, Embedding):
            found.append(module.weight)
        elif isinstance(module, BatchNorm) and len(module.gain) > 1:
            found += [module.gain, module.bias]
    return found


@torch.no_grad()
def pool_(tables: Sequence[Tensor], shares: Tensor) -> None:
    """Draws each row to the mean of all rows, label y by `shares`[y] of the way, float (classes,)."""
    for table in tables:
        table.lerp_(table.mean(0).expand_as(table), shares[:, None])


class _Divided(torch.autograd.Function):
    """W / σ with σ = uᵀWv: weight (out, …), u (out,), v (in,), σ, as `dtype`.

    Its derivative (G - ⟨G, W/σ⟩·uvᵀ) / σ (Miyato 2018, equation 12) in three passes over the weight, where autograd takes nine.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, u, v, sigma)
        return (weight / sigma).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, u, v, sigma = ctx.saved_tensors
        out = gradient.to(weight.dtype).flatten(1) / sigma
        along = torch.dot(out.flatten(), weight.flatten()) / sigma
        return out.addr_(u * -along, v).view_as(gradient), None, None, None, None


class Spectral(nn.Module):
    """A convolution or linear layer whose weight is divided by its largest singular value (Miyato 2018).

    The weight counts as a matrix (out, in·k·k); one step of the power method follows it in each training pass in which it learns. A pass
    in which it is frozen, the generator's turn, divides by what the last of those found: within one update σ hardly moves.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.layer = layer
        flat = layer.weight.detach().flatten(1)
        u = F.normalize(torch.randn(flat.shape[0]), dim=0)
        for _ in range(10):                          # settled enough that the first passes are not far off
            u = F.normalize(flat @ F.normalize(flat.t() @ u, dim=0), dim=0)
        self.register_buffer("u", u)
        self.u: Tensor
        self.sigma: Tensor | None = None             # as the last pass in training found it

    def normalised(self) -> Tensor:
        """W / σ(W), differentiable, in the type that autocast asks of a layer; σ = uᵀWv with u, v held constant."""
        weight = self.layer.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            if self.training and self.sigma is not None and not weight.requires_grad:
                return (weight / self.sigma).to(dtype)
            u, v, sigma = self._follow(weight.detach().flatten(1))
            out: Tensor = _Divided.apply(weight, u, v, sigma, dtype)
        return out

    @torch.no_grad()
    def _follow(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step of the power method, kept in training: u (out,), v (in,) and σ of the weight (out, in)."""
        v = flat.t() @ self.u
        v = v / torch.linalg.vector_norm(v)
        towards = flat @ v
        sigma = torch.linalg.vector_norm(towards)    # uᵀWv, since u is Wv at length 1
        u = towards / sigma
        if self.training:
            self.u.copy_(u)
            self.sigma = sigma
        return u, v, sigma

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.normalised(), self.layer.bias)
        return conv2d(x, self.normalised(), self.layer.bias, self.layer.stride, self.layer.padding)


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Labels (n,) → (n, classes). Torch's own looks for labels out of range, at the price of waiting for their values."""
    return (y[:, None] == torch.arange(classes, device=y.device)).to(dtype)


def labelled_logits(h: Tensor, y: Tensor, head: nn.Module, labels: Embedding) -> Tensor:
    """head(h) + ⟨h, e(y)⟩ of features h (n, dim) and their labels (n,), float32 (n,) (Miyato & Koyama 2018).

    Of a few classes one product of matrices gives the logit that each label would have, and passes over h once instead of seven times.
    """
    if labels.num_embeddings > FEW_CLASSES:
        out: Tensor = head(h).squeeze(1).float()
        return out + (h.float() * labels(y)).sum(1)
    linear = head.layer if isinstance(head, Spectral) else head
    assert isinstance(linear, nn.Linear)
    weight = head.normalised() if isinstance(head, Spectral) else linear.weight
    every = F.linear(h, labels.every() + weight)
    return every.gather(1, y[:, None]).squeeze(1).float() + linear.bias
