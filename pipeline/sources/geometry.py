"""Pixels of any size → squares of the asked resolution and channels, the same way for one image and for many.

The rule:
1. Colour becomes grey by ITU-R 601 luma; grey becomes colour by repeating.
2. A square image that is smaller by at most an eighth (28 → 32, 56 → 64) is padded evenly by repeating its border:
   no pixel of it changes. On a plain background that continues the background.
3. Anything else is cropped to the largest centred square and resized, bicubic and antialiased (Pillow's filter, in
   integer arithmetic, so the result is the same on every machine).
"""

import numpy as np
from PIL import Image

PAD_SHARE = 8                                        # padded if at most resolution / 8 is lacking
_LUMA = (19595, 38470, 7471)                         # 0.299, 0.587, 0.114 in 1/65536, as Pillow rounds them
_ROWS_AT_ONCE = 1 << 20                              # of pixels, given to the filter in one call


def fit(images: np.ndarray, resolution: int, channels: int) -> np.ndarray:
    """Brings images of one size to squares.

    Args:
        images: uint8 (N, H, W, C), C being 1 or 3.
        resolution: px of a side.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 (N, channels, resolution, resolution).
    """
    planes = np.ascontiguousarray(_to_channels(images, channels).transpose(0, 3, 1, 2))
    height, width = planes.shape[2:]
    lacking = resolution - height
    if height == width and 0 <= lacking * PAD_SHARE <= resolution:
        before, after = lacking // 2, lacking - lacking // 2
        return np.pad(planes, ((0, 0), (0, 0), (before, after), (before, after)), mode="edge") if lacking else planes
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(planes[:, :, top:top + side, left:left + side], resolution)


def describe(height: int, width: int, resolution: int) -> str:
    """What `fit` does to an image of this size, in words for the user."""
    if height == width == resolution:
        return "kept as they are"
    if height == width and 0 < (resolution - height) * PAD_SHARE <= resolution:
        return f"padded to {resolution} x {resolution} by their border"
    crop = "" if height == width else "cropped to the centred square and "
    return f"{crop}resized to {resolution} x {resolution}"


def _to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (N, H, W, C) → (N, H, W, channels)."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    red, green, blue = (images[..., i].astype(np.uint32) * weight for i, weight in enumerate(_LUMA))
    return ((red + green + blue + 0x8000) >> 16).astype(np.uint8)[..., None]


def _resize(planes: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 (N, C, S, S) → (N, C, R, R).

    Pillow's filter works along rows, then along columns, rounding to bytes between. Both passes are rows of one tall
    picture here, so a call serves thousands of images; the result is Pillow's own for each of them, bit for bit.
    """
    count, channels, side, _ = planes.shape
    out = np.empty((count, channels, resolution, resolution), np.uint8)
    step = max(1, _ROWS_AT_ONCE // (channels * max(side, resolution)))
    for first in range(0, count, step):
        some = planes[first:first + step]
        n = len(some) * channels
        rows = _filter(some.reshape(n * side, side), resolution).reshape(n, side, resolution)
        columns = np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(n * resolution, side)
        done = _filter(columns, resolution).reshape(n, resolution, resolution).transpose(0, 2, 1)
        out[first:first + step] = done.reshape(len(some), channels, resolution, resolution)
    return out


def _filter(rows: np.ndarray, width: int) -> np.ndarray:
    """uint8 (M, S) → (M, width): each row resampled."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(rows)).resize((width, len(rows)), Image.Resampling.BICUBIC))
