"""Pictures in the report: strips of images at one scale, whole PNGs cut to size, as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.grids import tile_grid

MAX_LINE_PX = 340                                    # what a line of images gets on a wide page
MAX_IMAGE_PX = 96                                    # larger images are shrunk: a strip shows them smaller yet


@dataclass(frozen=True)
class Strip:
    """Images of one class in one or two lines; `width` in percent of a full line, so that all show one scale."""

    png: bytes
    width: float

    @property
    def uri(self) -> str:
        """For `<img src>`."""
        return data_uri(self.png)


def strip(images: Sequence[np.ndarray] | np.ndarray, columns: int) -> Strip | None:
    """Images uint8 (C, H, W), `columns` of them to a full line; None for none."""
    if not len(images):
        return None
    pixels = shrunk(np.asarray(images))
    cell = pixels.shape[3] + 1
    line = per_line(columns, pixels.shape[3])
    share = (min(len(pixels), line) * cell + 1) / (line * cell + 1)
    return Strip(tile_grid(pixels, line, pad=1, transparent=True), round(100 * share, 2))


def per_line(columns: int, resolution: int) -> int:
    """Two lines where one would show the images smaller than they are."""
    return columns if columns * (resolution + 1) <= MAX_LINE_PX else -(-columns // 2)


def shrunk(images: np.ndarray) -> np.ndarray:
    """uint8 (n, C, H, W) brought to `MAX_IMAGE_PX` or less by means over whole blocks of pixels."""
    n, channels, height, width = images.shape
    factor = next((f for f in range(1, height + 1) if height % f == 0 and height // f <= MAX_IMAGE_PX), 1)
    if factor == 1 or width % factor:
        return images
    blocks = images.reshape(n, channels, height // factor, factor, width // factor, factor)
    return blocks.mean((3, 5)).round().astype(np.uint8)


@dataclass(frozen=True)
class Picture:
    """A picture with what stands under it."""

    uri: str
    caption: str
    pixelated: bool                                  # enlarged on the page: keep the pixels' edges, else smooth them


def cut(png: bytes, max_bytes: int | None) -> bytes:
    """`png`, its lower part left away where it is much higher than wide or larger than `max_bytes`."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
        keep = min(height, 2 * width)
        if max_bytes is not None and len(png) > max_bytes:
            keep = max(1, min(keep, int(height * 0.9 * max_bytes / len(png))))
        if keep == height:
            return png
        out = io.BytesIO()
        image.crop((0, 0, width, keep)).save(out, "PNG", compress_level=9)
    return out.getvalue()


def picture(png: bytes, caption: str, shown_px: int) -> Picture:
    """A PNG as it is, shown `shown_px` wide."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return Picture(data_uri(png), caption, pixelated=image.width <= shown_px)


def data_uri(png: bytes) -> str:
    """For `<img src>`."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
