"""One encoded image → uint8 pixels, or the reason why not.

Nothing in a file may stop the run, eat the memory or pass for an image that it isn't: formats are limited to plain
rasters, the size is checked before a pixel is decoded, and every way in which a decoder fails becomes an `Unreadable`.

What is converted (and counted): 16-bit and float pixels by their full range, 1-bit, palette, CMYK (Adobe's inverted one
too) and other colour spaces, transparency laid over white, EXIF orientation, the first of several frames.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.sources.source import Mended, Reason, Unreadable

MAX_PIXELS = 50_000_000                              # 7,000 x 7,000; 150 MB as RGB
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA")
_PLAIN_MAX_PIXELS = 512 * 512                        # beyond, the decoder's own time counts, not the call
_DRAFT_FACTOR = 3                                    # a JPEG is decoded at no less than this times the resolution
_ORIENTATION = 0x0112                                # EXIF tag
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PLAIN = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tEXt", b"tIME", b"sRGB", b"gAMA", b"cHRM"})
# What Pillow's plugins raise on damaged files, as seen by feeding them mutated ones.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError,
                   EOFError, MemoryError, NotImplementedError, ZeroDivisionError, struct.error, zlib.error,
                   Image.DecompressionBombError, Image.DecompressionBombWarning)

# Pillow's remarks on odd files name no file; what matters is an `Unreadable`, its bound on pixels lower than Pillow's.
warnings.filterwarnings("ignore", module=r"PIL\..*")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes, resolution: int) -> tuple[np.ndarray, tuple[Mended, ...]]:
    """Decodes one image of any supported format and mode.

    Args:
        resolution: px that the image will be brought to; large JPEGs are decoded at a fraction of their size.

    Returns:
        uint8 (H, W, 1) for grey or (H, W, 3) for colour, and what was mended.

    Raises:
        Unreadable: with the reason.
    """
    if not data:
        raise Unreadable(Reason.EMPTY, "0 bytes")
    plain = _decode_plain(data)
    pixels, mended = (plain, ()) if plain is not None else _decode_any(data, resolution)
    return pixels if pixels.ndim == 3 else pixels[:, :, None], mended


def dimensions(data: bytes) -> tuple[int, int]:
    """(H, W) by the header of an image that `decode` reads."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.height, image.width


def _decode_any(data: bytes, resolution: int) -> tuple[np.ndarray, tuple[Mended, ...]]:
    mended: list[Mended] = []
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            turned = _orientation(image)
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                image.draft(None, (_DRAFT_FACTOR * resolution,) * 2)
            sixteen = _is_sixteen_bit_colour(data)
            image.load()
            frame: Image.Image = image
            if turned != 1:
                frame = ImageOps.exif_transpose(image)
                mended.append(Mended.ROTATION)
            if sixteen:
                mended.append(Mended.SIXTEEN_BIT)
            pixels = _eight_bits(frame, mended)
            if image.format != "MPO" and _has_more_frames(image):       # MPO: a phone's preview or depth map beside it
                mended.append(Mended.FIRST_FRAME)
    except UnidentifiedImageError as e:
        raise Unreadable(*_unidentified(data)) from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise Unreadable(Reason.BOMB, f"more than {MAX_PIXELS:,} pixels") from e
    except _DECODER_ERRORS as e:
        detail = " ".join(str(e).split()) or type(e).__name__
        short = any(word in detail.lower() for word in ("truncated", "not enough", "unexpected end", "eof"))
        raise Unreadable(Reason.TRUNCATED if short or isinstance(e, EOFError) else Reason.CORRUPT, detail[:200]) from e
    return pixels, tuple(mended)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise Unreadable(Reason.CORRUPT, f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise Unreadable(Reason.BOMB, f"{width:,} x {height:,} pixels, more than {MAX_PIXELS:,} in all")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8; 1 (upright) when there is none or it makes no sense. Asked before the pixels are read."""
    if image.format != "TIFF" and not {"exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:                          # broken EXIF beside sound pixels is no reason to lose the image
        image.info.pop("exif", None)
        return 1
    return value if value in range(2, 9) else 1


def _is_sixteen_bit_colour(data: bytes) -> bool:
    """PNG of 16 bits with colour or alpha, which Pillow cuts to 8 bits itself."""
    return data[:8] == _PNG and len(data) > 25 and data[24] == 16 and data[25] != 0


def _eight_bits(image: Image.Image, mended: list[Mended]) -> np.ndarray:
    """uint8 (H, W) for grey or (H, W, 3) for colour; appends to `mended` what it had to do."""
    mode = image.mode
    if mode.startswith("I"):
        return _from_integers(np.asarray(image), mode, mended)
    if mode == "F":
        return _from_floats(np.asarray(image), mended)
    if mode == "1":
        mended.append(Mended.ONE_BIT)
        return np.asarray(image.convert("L"))
    if mode in ("P", "PA"):
        mended.append(Mended.PALETTE)
    if "transparency" in image.info or mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        return _over_white(image, mended)
    if mode == "P":
        image = image.convert("RGB")
    elif mode == "CMYK":
        mended.append(Mended.CMYK)
        image = image.convert("RGB")
    elif mode not in ("L", "RGB"):
        try:
            image = image.convert("RGB")
        except ValueError as e:
            raise Unreadable(Reason.MODE, f"mode {mode} can't be converted to RGB") from e
        if mode != "RGBX":                           # the same with a filler byte
            mended.append(Mended.COLOR_SPACE)
    return np.asarray(image)


def _from_integers(values: np.ndarray, mode: str, mended: list[Mended]) -> np.ndarray:
    """16-bit by its full range 0 … 65535; 32-bit only if its values are of that range, for what is white in it?"""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise Unreadable(Reason.MODE, f"mode {mode} with values {low} to {high}: which of them is white is unknown")
    mended.append(Mended.SIXTEEN_BIT)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _from_floats(values: np.ndarray, mended: list[Mended]) -> np.ndarray:
    """0 … 1 or 0 … 255; what lies elsewhere has no white that could be known."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):               # false for NaN too
        raise Unreadable(Reason.MODE, f"float pixels with values {low:g} to {high:g}: wanted is 0 to 1 or 0 to 255")
    mended.append(Mended.FLOAT)
    return np.rint(values.astype(np.float64) * (255 if high <= 1 else 1)).astype(np.uint8)


def _over_white(image: Image.Image, mended: list[Mended]) -> np.ndarray:
    grey = image.mode in ("L", "LA", "La")
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema() == (255, 255):          # opaque everywhere: nothing shines through
        return np.asarray(layer.convert("L" if grey else "RGB"))
    mended.append(Mended.ALPHA)
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layer).convert("L" if grey else "RGB"))


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _DECODER_ERRORS:                          # a damaged second frame; the first one was fine
        return True


def _unidentified(data: bytes) -> tuple[Reason, str]:
    """No decoder knows it: an image cut off in its header, or something else under an image's name."""
    known = (_PNG[:4], b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    if data.startswith(known) or (data.startswith(b"RIFF") and data[8:12] in (b"WEBP", b"")):
        return Reason.TRUNCATED if len(data) < 512 else Reason.CORRUPT, "the header is damaged"
    start = data[:16]
    return Reason.NOT_AN_IMAGE, "begins with " + (repr(start.decode()) if start.isascii() else f"0x{start[:4].hex()}")


def _decode_plain(data: bytes) -> np.ndarray | None:
    """The same pixels as by Pillow, three to four times as fast, for small and simple files; None for all others.

    OpenCV returns an image for a file that ends early, drops alpha and turns by EXIF unasked. So it is given only files
    that are seen whole and plain: 8-bit grey or colour, without EXIF, colour profile, palette or transparency.
    """
    if data[:8] == _PNG:
        plain = _is_plain_png(data)
    elif data[:3] == b"\xff\xd8\xff":
        plain = _is_plain_jpeg(data)
    else:
        return None
    if not plain:
        return None
    import cv2  # late: a fifth of a second that idx and digits don't need

    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None                                  # Pillow finds the words for it
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)):
        return None
    return np.asarray(pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1]))


def _is_plain_png(data: bytes) -> bool:
    """Every chunk there with its right checksum, none that changes what the pixels mean."""
    at, end = 8, len(data)
    while at + 12 <= end:
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4:at + 8]
        after = at + 12 + length
        if kind not in _PNG_PLAIN or after > end:
            return False
        if zlib.crc32(data[at + 4:after - 4]) != struct.unpack_from(">I", data, after - 4)[0]:
            return False
        if at == 8:
            if kind != b"IHDR" or length != 13:
                return False
            width, height, depth, colour = struct.unpack_from(">IIBB", data, at + 8)
            if depth != 8 or colour not in (0, 2) or not 0 < width * height <= _PLAIN_MAX_PIXELS:
                return False
        if kind == b"IEND":
            return True
        at = after
    return False


def _is_plain_jpeg(data: bytes) -> bool:
    """Baseline or progressive, grey or YCbCr, whole to its end marker, without EXIF, profile or Adobe's marker."""
    if data[-2:] != b"\xff\xd9":
        return False
    at, end, seen = 2, len(data), False
    while at + 4 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        length = data[at + 2] << 8 | data[at + 3]
        if marker in (0xC0, 0xC1, 0xC2):             # frame header: precision, height, width, components
            if seen or length < 8 or at + 2 + length > end:
                return False
            depth, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            ids = data[at + 10:at + 10 + 3 * components:3]
            if depth != 8 or not 0 < height * width <= _PLAIN_MAX_PIXELS or ids not in (b"\x01", b"\x01\x02\x03"):
                return False
            seen = True
        elif marker == 0xDA:                         # the scan begins
            return seen
        elif marker not in (0xE0, 0xDB, 0xC4, 0xDD, 0xFE):
            return False
        at += 2 + length
    return False
