"""Images of any size → squares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.sources.geometry import describe, fit


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def test_the_right_size_is_left_alone() -> None:
    images = noise(5, 16, 16, 1)
    np.testing.assert_array_equal(fit(images, 16, 1)[:, 0], images[..., 0])
    assert describe(16, 16, 16) == "kept as they are"


def test_28_becomes_32_without_touching_a_pixel() -> None:
    images = noise(4, 28, 28, 1)
    images[:, [0, -1]] = images[:, :, [0, -1]] = 7  # a plain background, not black
    out = fit(images, 32, 1)[:, 0]
    np.testing.assert_array_equal(out[:, 2:30, 2:30], images[..., 0])
    out[:, 2:30, 2:30] = 7
    assert (out == 7).all() and "padded" in describe(28, 28, 32)


@pytest.mark.parametrize(
    "size, resolution, padded",
    [
        (28, 32, True),
        (27, 32, False),
        (56, 64, True),
        (7, 8, True),
        (8, 32, False),
        (33, 32, False),
        (96, 100, True),
        (31, 32, True),
    ],
)
def test_padding_serves_only_up_to_an_eighth(size: int, resolution: int, padded: bool) -> None:
    assert ("padded" in describe(size, size, resolution)) is padded
    image, out = noise(1, size, size, 1), fit(noise(1, size, size, 1), resolution, 1)[0, 0]
    at = (resolution - size) // 2
    same = size <= resolution and np.array_equal(out[at : at + size, at : at + size], image[0, ..., 0])
    assert out.shape == (resolution, resolution) and same is padded


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 12, 32]), st.sampled_from([1, 3]), st.integers(1, 3))
def test_resizing_many_is_pillows_resizing_of_each(
    height: int, width: int, resolution: int, channels: int, count: int
) -> None:
    images = noise(count, height, width, channels)
    out = fit(images, resolution, channels)
    assert out.shape == (count, channels, resolution, resolution) and out.dtype == np.uint8
    if "padded" in describe(height, width, resolution) or height == width == resolution:
        return
    side, top, left = min(height, width), (height - min(height, width)) // 2, (width - min(height, width)) // 2
    for image, got in zip(images, out):
        square = image[top : top + side, left : left + side]
        wanted = np.asarray(
            Image.fromarray(square[..., 0] if channels == 1 else square).resize(
                (resolution,) * 2, Image.Resampling.BICUBIC
            )
        )
        np.testing.assert_array_equal(got.transpose(1, 2, 0), wanted if channels == 3 else wanted[..., None])


def test_shrinking_is_antialiased() -> None:
    checks = np.indices((64, 64)).sum(0)[None, ..., None] % 2 * 255
    out = fit(checks.astype(np.uint8), 8, 1)
    assert np.abs(out.astype(int) - 127).max() <= 2  # without a filter it would be all 0 or all 255


def test_luma_is_pillows_and_grey_becomes_three_equal_channels() -> None:
    colours = noise(1, 64, 64, 3)
    np.testing.assert_array_equal(fit(colours, 64, 1)[0, 0], np.asarray(Image.fromarray(colours[0]).convert("L")))
    grey = noise(1, 16, 16, 1)
    np.testing.assert_array_equal(fit(grey, 16, 3)[0], np.repeat(grey[0].transpose(2, 0, 1), 3, axis=0))


def test_the_middle_is_what_stays_of_a_long_image() -> None:
    image = np.zeros((1, 8, 24, 1), np.uint8)
    image[:, :, 8:16] = 200
    assert (fit(image, 8, 1) == 200).all()


def test_many_images_in_several_calls_of_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(50, 10, 10, 3)
    whole = fit(images, 16, 3)
    monkeypatch.setattr("pipeline.sources.geometry._ROWS_AT_ONCE", 200)
    np.testing.assert_array_equal(fit(images, 16, 3), whole)
