"""Where the pixels of a moved image come from."""

import torch
from torch import Tensor


def affine_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """The grid (n, height, width, 2) that `torch.nn.functional.grid_sample` takes, of maps from output to input positions (n, 2, 3).

    As torch's own `affine_grid` without `align_corners`, up to rounding. An affine map is a part that changes along a row and one that
    changes along a column: their sum is one pass over the grid, where torch's product of matrices, two numbers wide, takes several times
    as long on a CPU. Both coordinates lie in planes, the last dimension strided.
    """
    across = matrix[:, :, 0, None] * _centres(width, matrix)
    down = matrix[:, :, 1, None] * _centres(height, matrix) + matrix[:, :, 2, None]
    return (across[:, :, None] + down[:, :, :, None]).permute(0, 2, 3, 1)


def _centres(pixels: int, like: Tensor) -> Tensor:
    """Positions of the pixels' centres, the borders at -1 and 1: (pixels,)."""
    return (torch.arange(pixels, device=like.device, dtype=like.dtype) * 2 + 1) / pixels - 1
