"""tile_grid: every pixel where it belongs."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.grids import GAP_GREY, tile_grid


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), columns=st.integers(1, 6), pad=st.integers(0, 3), channels=st.sampled_from([1, 3]),
       height=st.integers(1, 5), width=st.integers(1, 5), transparent=st.booleans())
def test_every_image_can_be_cut_out_again(n, columns, pad, channels, height, width, transparent):
    images = np.random.default_rng(n).integers(0, 256, (n, channels, height, width), np.uint8)
    grid = pixels(tile_grid(images, columns, pad, transparent=transparent))
    used = min(columns, n)
    assert grid.shape[:2] == (-(-n // used) * (height + pad) + pad, used * (width + pad) + pad)
    cells = np.zeros(grid.shape[:2], bool)
    for i, image in enumerate(images):
        top, left = pad + i // used * (height + pad), pad + i % used * (width + pad)
        cut = grid[top:top + height, left:left + width].reshape(height, width, -1)
        np.testing.assert_array_equal(cut[..., :channels], image.transpose(1, 2, 0))
        if transparent:
            assert (cut[..., channels] == 255).all()
        cells[top:top + height, left:left + width] = True
    gaps = np.atleast_3d(grid)[~cells]
    assert (gaps[:, -1] == 0).all() if transparent else (gaps == GAP_GREY).all()


@pytest.mark.parametrize("shape, dtype, columns, pad", [
    ((2, 1, 4, 4), np.float32, 2, 2), ((2, 4, 4), np.uint8, 2, 2), ((2, 2, 4, 4), np.uint8, 2, 2),
    ((0, 1, 4, 4), np.uint8, 2, 2), ((2, 1, 4, 4), np.uint8, 0, 2), ((2, 1, 4, 4), np.uint8, 2, -1),
])
def test_wrong_input_is_named(shape, dtype, columns, pad):
    with pytest.raises(ValueError, match="must be"):
        tile_grid(np.zeros(shape, dtype), columns, pad)


def test_same_images_same_bytes():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8)
    assert tile_grid(images, 3) == tile_grid(images.copy(), 3)
