"""Fréchet distance of two Gaussians (Dowson & Landau 1982); on Inception features the FID of Heusel et al. 2017."""

import torch
from torch import Tensor

from gan.metrics.distances import check_finite


class Gaussian:
    """Mean and covariance of features, gathered batch by batch in float64.

    Batches are merged by the pairwise update of Chan, Golub & LeVeque 1983, so that the result doesn't depend on how
    the rows were cut.
    """

    def __init__(self, features: Tensor | None = None) -> None:
        self.count = 0
        self.mean = torch.empty(0, dtype=torch.float64)
        self.scatter = torch.empty(0, 0, dtype=torch.float64)   # sum of (x - mean)(x - mean)ᵀ
        if features is not None:
            self.update(features)

    def update(self, features: Tensor) -> "Gaussian":
        """Adds rows (n, d).

        Raises:
            ValueError: not two-dimensional, another d than before, or a value that is not finite.
        """
        if features.ndim != 2 or (self.count and features.shape[1] != len(self.mean)):
            width = len(self.mean) if self.count else "d"
            raise ValueError(f"features must be (n, {width}), got {tuple(features.shape)}")
        check_finite(features)
        if len(features) == 0:
            return self
        rows = features.detach().cpu().double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if self.count == 0:
            self.count, self.mean, self.scatter = len(rows), mean, scatter
            return self
        total, step = self.count + len(rows), mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(step, step) * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance float64 (d, d); zeros when there is one row."""
        return self.scatter / max(1, self.count - 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ_a - μ_b‖² + tr(Σ_a) + tr(Σ_b) - 2 tr((Σ_a Σ_b)^½), at least 0.

    The last trace is the sum of the singular values of S_aᵀ S_b with Σ = S Sᵀ, which holds for singular covariances
    too and never takes the square root of a squared small number.

    Raises:
        ValueError: a set without rows, or of other width.
    """
    if a.count == 0 or b.count == 0 or len(a.mean) != len(b.mean):
        sizes = f"{a.count} × {len(a.mean)} and {b.count} × {len(b.mean)}"
        raise ValueError(f"features of {sizes}: need rows in both, equally wide")
    cross = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    apart = (a.mean - b.mean).square().sum()
    return max(0.0, float(apart + a.covariance.trace() + b.covariance.trace() - 2 * cross))


def _root(covariance: Tensor) -> Tensor:
    """S with S Sᵀ = covariance; directions whose variance is rounding noise are dropped."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.max().clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > noise, values, 0.0).sqrt()
