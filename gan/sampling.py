"""From seeds to latents and images; row i depends on seed i and label i alone."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gan.errors import BadData

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# These keep the streams apart.
_REDRAW, _COIN, _MEMBER = np.uint64(0xD1B54A32D192ED03), np.uint64(0x8CB92BA72F3D8DD7), np.uint64(0x9FB21C651E98DF25)

# Wichura 1988, algorithm AS 241 (PPND16): the normal quantile to about 1 part in 1e16. Numerator and denominator
# coefficients, highest power first, for the middle, the tail and the far tail.
_MIDDLE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
    (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
     5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0),
)
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
     3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1.0),
)
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]) -> NDArray[np.float64]:
    above, below = (np.zeros_like(x), np.zeros_like(x))
    for a, b in zip(*coefficients):
        above, below = above * x + a, below * x + b
    return above / below


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x from basic operations alone: 2·artanh((m - 1)/(m + 1)) + e·ln 2 with x = m·2^e, m in [√½, √2)."""
    m, e = np.frexp(x)
    small = m < np.sqrt(0.5)
    m, e = np.where(small, 2 * m, m), e - small
    t = (m - 1) / (m + 1)
    square, series = t * t, np.zeros_like(t)
    for k in range(23, 0, -2):                       # |t| ≤ 0.172: the first term left out is below 1e-19
        series = series * square + 1.0 / k
    return 2 * t * series + e * 0.6931471805599453


def normal_quantile(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Φ⁻¹(p) for p in (0, 1), from operations that IEEE 754 rounds alike on every machine (+ - × ÷ √)."""
    q = p - 0.5
    r = np.sqrt(-_log(np.minimum(p, 1 - p)))
    middle = q * _ratio(_MIDDLE, 0.180625 - q * q)
    tail = np.where(r <= 5, _ratio(_TAIL, r - 1.6), _ratio(_FAR, r - 5))
    return np.where(np.abs(q) <= 0.425, middle, np.where(q < 0, -tail, tail))


def latents(seeds: NDArray[np.int64], z_dim: int) -> Tensor:
    """N(0, 1) latents, float32 (n, z_dim); row i follows from seeds[i] alone, the same bits on every machine.

    A counter-based generator: number j of a row is a hash of (seed, j), so nothing is drawn in sequence.
    """
    start = _mix(np.asarray(seeds, np.int64).astype(np.uint64) + _GOLDEN)
    counters = (np.arange(1, z_dim + 1, dtype=np.uint64) * _GOLDEN)[None, :]
    bits = _mix(start[:, None] + counters) >> np.uint64(11)
    p = (bits.astype(np.float64) + 0.5) * 2.0**-53   # 53 bits, never 0; 1 is out of reach but by rounding of the last
    return torch.from_numpy(normal_quantile(np.minimum(p, 1 - 2.0**-53)).astype(np.float32))


def redraw_seeds(seeds: NDArray[np.int64], attempt: int) -> NDArray[np.int64]:
    """Seeds int64 (n,) of the rows' draw number `attempt`, each from its own alone; number 0 are the seeds themselves."""
    if attempt == 0:
        return np.asarray(seeds, np.int64)
    start = np.asarray(seeds, np.int64).astype(np.uint64) ^ _REDRAW
    return (_mix(_mix(start) + np.array([attempt], np.uint64) * _GOLDEN) >> np.uint64(1)).astype(np.int64)


def uniforms(seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    """U(0, 1) numbers (n,), each from its seed alone and independent of the seed's latents."""
    return _fractions(seeds, _COIN)


def _fractions(seeds: NDArray[np.int64], stream: np.uint64) -> NDArray[np.float64]:
    bits = _mix(_mix(np.asarray(seeds, np.int64).astype(np.uint64) ^ stream) + _GOLDEN) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


class Mixture(nn.Module):
    """Several generators as one: a sample's seed says which of them makes it, each as often as another.

    Only `generate` draws from it, since a latent alone doesn't say whose it is.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def choose(self, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
        """The member, int64 (n,), that makes the sample of each seed; independent of the seed's latents."""
        return np.floor(_fractions(seeds, _MEMBER) * len(self.members)).astype(np.int64)


def generate(g: nn.Module, labels: Tensor, seeds: NDArray[np.int64], batch_size: int = 256, *,
             truncation: float = 1.0) -> Tensor:
    """Images of a generator in evaluation mode.

    Args:
        g: generator `(z, y) -> images in [-1, 1]` with an attribute `z_dim`, or a `Mixture` of such.
        labels: int64 (n,).
        seeds: int64 (n,), one an image.
        batch_size: images at a time; the last batch is filled up, so that every full batch runs the same kernels.
        truncation: ψ, by which latents are drawn towards their mean: variance ψ², more typical and less varied images
            below 1. Every family's first layer is linear in z, so this is also the truncation towards the mean
            intermediate latent, w̄ + ψ·(w - w̄) (Karras 2019), with w̄ exact and no average to keep.

    Returns:
        uint8 (n, C, H, W) on the CPU.

    Raises:
        BadData: a truncation that is not in 0 … 2.
    """
    if not 0 <= truncation <= 2:
        raise BadData(f"truncation {truncation}: must be from 0 (all alike) over 1 (as trained) to 2")
    if isinstance(g, Mixture):
        return _mixed(g, labels, seeds, batch_size, truncation)
    device = next(g.parameters()).device
    parts, n, was_training = [], len(labels), g.training
    g.eval()
    try:
        with torch.inference_mode():
            for start in range(0, n, batch_size):
                y, s = labels[start:start + batch_size], seeds[start:start + batch_size]
                kept = len(y)
                if start and kept < batch_size:
                    y, s = _filled(y, batch_size), np.resize(s, batch_size)
                z = latents(s, int(g.z_dim)) * truncation  # type: ignore[arg-type]
                parts.append(to_uint8(g(z.to(device), y.to(device)))[:kept].cpu())
    finally:
        g.train(was_training)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def _mixed(g: Mixture, labels: Tensor, seeds: NDArray[np.int64], batch_size: int, truncation: float) -> Tensor:
    """Each member's samples, in the order that was asked for."""
    seeds = np.asarray(seeds, np.int64)
    chosen, images = g.choose(seeds), torch.empty(0, dtype=torch.uint8)
    for number, member in enumerate(g.members):
        rows = np.flatnonzero(chosen == number)
        if len(rows):
            index = torch.from_numpy(rows)
            made = generate(member, labels[index], seeds[rows], batch_size, truncation=truncation)
            images = images if len(images) else made.new_empty((len(seeds), *made.shape[1:]))
            images[index] = made
    return images


def _filled(y: Tensor, length: int) -> Tensor:
    return y.repeat(-(-length // len(y)))[:length]


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded."""
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
