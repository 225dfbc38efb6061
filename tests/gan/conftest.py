"""Small data and single-threaded torch for the model floor's tests."""

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def dark_and_bright() -> tuple[Tensor, Tensor]:
    """Two classes of 8×8 images: a dark (20 … 80) or a bright (180 … 240) square in the middle, uint8."""
    labels = torch.arange(400) % 2
    level = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 60 + torch.where(labels == 1, 180.0, 20.0)
    images = torch.zeros(400, 1, 8, 8)
    images[:, :, 2:6, 2:6] = level[:, None, None, None]
    return images.to(torch.uint8), labels


@pytest.fixture(scope="session")
def squares() -> tuple[Tensor, Tensor]:
    """`dark_and_bright`'s."""
    return dark_and_bright()
