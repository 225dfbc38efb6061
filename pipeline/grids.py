"""Many small images in one PNG: what training, evaluation and the report show."""

import io

import numpy as np
from PIL import Image

GAP_GREY = 128                                       # neither black nor white: images stand apart from it on any page


def tile_grid(images: np.ndarray, columns: int, pad: int = 2, *, transparent: bool = False) -> bytes:
    """Images side by side in reading order, `columns` in a row, `pad` pixels between them and around the whole.

    Args:
        images: uint8 (n, C, H, W) with C = 1 (grey) or 3 (RGB); at least one. The last row may stay short.
        columns: images in a row, at least 1; a grid with fewer images than that is as narrow as they are.
        pad: width of the gaps in pixels, the outer border included; 0 for none.
        transparent: gaps (and missing images of the last row) let the page shine through, with an alpha channel;
            otherwise they are mid-grey. The images' own pixels are never touched.

    Returns:
        PNG bytes of rows·H + (rows + 1)·pad by columns·W + (columns + 1)·pad pixels.

    Raises:
        ValueError: not uint8, not (n, 1 or 3, H, W), no image, or columns or pad out of range.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise ValueError(f"images must be uint8 (n ≥ 1, 1 or 3, H, W), got {images.dtype} {images.shape}")
    if columns < 1 or pad < 0:
        raise ValueError(f"columns must be at least 1 and pad at least 0, got {columns} and {pad}")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = (rows * height + (rows + 1) * pad, columns * width + (columns + 1) * pad, channels + transparent)
    canvas = np.full(shape, 0 if transparent else GAP_GREY, np.uint8)
    for index, image in enumerate(images.transpose(0, 2, 3, 1)):
        top = pad + index // columns * (height + pad)
        left = pad + index % columns * (width + pad)
        canvas[top:top + height, left:left + width, :channels] = image
        if transparent:
            canvas[top:top + height, left:left + width, channels] = 255
    return _png(canvas)


def _png(pixels: np.ndarray) -> bytes:
    """PNG of uint8 (H, W, 1 to 4): grey, grey + alpha, RGB or RGBA."""
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    out = io.BytesIO()
    Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes()).save(out, "PNG", compress_level=9)
    return out.getvalue()
