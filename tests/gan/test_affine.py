"""The grid of an affine map is torch's own, and its kernels read it as such."""

import pytest
import torch
from torch.nn import functional as F

from gan.affine import affine_grid


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 12), (32, 1)])
def test_grid_is_torchs(height: int, width: int) -> None:
    matrix = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.affine_grid(matrix, [7, 1, height, width], align_corners=False)
    torch.testing.assert_close(affine_grid(matrix, height, width), expected, rtol=0, atol=1e-14)


def test_rows_and_columns_are_not_exchanged() -> None:
    """A map that moves along one axis alone, by hand: output pixel (i, j) takes x from column j + 1 and y from row i."""
    matrix = torch.tensor([[[1.0, 0.0, 2 / 4], [0.0, 1.0, 0.0]]])
    grid = affine_grid(matrix, 2, 4)
    assert grid.shape == (1, 2, 4, 2)
    assert grid[0, 0, :, 0].tolist() == [-0.25, 0.25, 0.75, 1.25]
    assert grid[0, :, 3, 1].tolist() == [-0.5, 0.5]


def test_resampling_by_it_is_resampling_by_torchs() -> None:
    """The kernels take the strided grid for what it is, forward and backward, in either memory layout."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.eye(2, 3).expand(6, 2, 3) + 0.2 * torch.randn(6, 2, 3, generator=generator)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(6, 3, 16, 16, generator=generator).contiguous(memory_format=layout)
        found = []
        for grid in (affine_grid(matrix, 16, 16), F.affine_grid(matrix, list(x.shape), align_corners=False)):
            image = x.clone().requires_grad_(True)
            out = F.grid_sample(image, grid, "bilinear", "border", align_corners=False)
            out.square().sum().backward()
            found.append((out.detach(), image.grad))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
