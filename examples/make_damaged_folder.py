"""An image folder made of scikit-learn's digits with damaged and odd files mixed in, to see what ganmill makes of it.

    python examples/make_damaged_folder.py /tmp/damaged --damaged 50 --odd 50

Damaged files (ten kinds, in turn) must end in quarantine; odd ones (ten kinds) are images that must be read all the
same. `prepare.max_bad` has to allow for the damaged ones: 50 of 1,897 are 2.6 %.
"""

import argparse
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def claims_to_be_huge(image: Image.Image) -> bytes:
    """A PNG of some 100 bytes whose header asks for 60,000 x 60,000 pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = zlib.compress(np.asarray(image).tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_broken_middle(image: Image.Image) -> bytes:
    """A PNG with flipped bytes in its pixel data."""
    data = bytearray(encoded(image.resize((32, 32)), "PNG"))
    middle = data.index(b"IDAT") + 20
    data[middle:middle + 8] = bytes(b ^ 0xFF for b in data[middle:middle + 8])
    return bytes(data)


def with_nan(image: Image.Image) -> bytes:
    """A float TIFF with a pixel that is no number."""
    values = np.asarray(image).astype(np.float32) / 255
    values[0, 0] = np.nan
    return encoded(Image.fromarray(values), "TIFF")


DAMAGED: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "zero-bytes": (".png", lambda image: b""),
    "text": (".png", lambda image: b"this is no image\n" * 20),
    "html": (".jpg", lambda image: b"<!DOCTYPE html><title>404 Not Found</title>" + b" " * 600),
    "cut-png": (".png", lambda image: encoded(image.resize((32, 32)), "PNG")[:-100]),
    "cut-jpeg": (".jpg", lambda image: encoded(image.resize((64, 64)), "JPEG")[:-200]),
    "header-only": (".png", lambda image: encoded(image, "PNG")[:20]),
    "broken-middle": (".png", with_broken_middle),
    "bomb": (".png", claims_to_be_huge),
    "noise": (".bmp", lambda image: np.random.default_rng(0).bytes(900)),
    "nan": (".tif", with_nan),
}


def two_frames(image: Image.Image) -> bytes:
    """A GIF whose second frame is black."""
    return encoded(image, "GIF", save_all=True, append_images=[Image.new("L", image.size)], duration=100)


def lying_on_its_side(image: Image.Image) -> bytes:
    """A JPEG whose EXIF says how to turn it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6                                 # to be turned by 90° clockwise
    return encoded(image.resize((32, 32)).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def see_through(image: Image.Image) -> bytes:
    """A PNG with an alpha channel."""
    layered = image.convert("RGBA")
    layered.putalpha(image.point(lambda value: max(value, 128)))
    return encoded(layered, "PNG")


ODD: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "16-bit": (".png", lambda image: encoded(Image.fromarray(np.asarray(image).astype(np.uint16) * 257), "PNG")),
    "float": (".tif", lambda image: encoded(Image.fromarray(np.asarray(image).astype(np.float32) / 255), "TIFF")),
    "1-bit": (".png", lambda image: encoded(image.convert("1", dither=Image.Dither.NONE), "PNG")),
    "palette": (".png", lambda image: encoded(image.convert("RGB").quantize(16), "PNG")),
    "cmyk": (".jpg", lambda image: encoded(image.convert("CMYK"), "JPEG", quality=95)),
    "alpha": (".png", see_through),
    "rotated": (".jpg", lying_on_its_side),
    "animated": (".gif", two_frames),
    "webp-named-png": (".png", lambda image: encoded(image.convert("RGB"), "WEBP", lossless=True)),
    "large": (".jpg", lambda image: encoded(image.resize((600, 400)), "JPEG")),
}


def sound(label: int, all_of_it: int, per_class: int | None, ratio: float) -> int:
    """How many sound images a class gets: the class 0 all or `per_class`, the others ever fewer, the class 9 a `ratio`-th."""
    most = all_of_it if per_class is None else min(per_class, all_of_it)
    return max(1, round(most * ratio ** (-label / 9)))


def make(folder: Path, damaged: int = 50, odd: int = 0, per_class: int | None = None, ratio: float = 1.0) -> dict[str, str]:
    """Writes `<folder>/<digit>/<name>`.

    Args:
        damaged, odd: files to mix in, spread over the classes and their kinds.
        per_class: sound images of each class; all by default.
        ratio: class 0 over class 9; the sizes between fall exponentially.

    Returns:
        name below the folder → kind, of what was mixed in.
    """
    digits = load_digits()
    images = [Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)) for image in digits.images]
    of_class = {label: np.flatnonzero(digits.target == label) for label in range(10)}
    mixed = {}
    for label, rows in of_class.items():
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for row in rows[:sound(label, len(rows), per_class, ratio)].tolist():
            (folder / str(label) / f"{row:04d}.png").write_bytes(encoded(images[row], "PNG"))
    for group, count, kinds in (("damaged", damaged, DAMAGED), ("odd", odd, ODD)):
        names = list(kinds)
        for number in range(count):
            kind = names[number % len(names)]
            label = number * 7 % 10
            extension, build = kinds[kind]
            name = f"{label}/{group}-{number:03d}-{kind}{extension}"
            (folder / name).write_bytes(build(images[of_class[label][-1 - number // 10]]))
            mixed[name] = kind
    return mixed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Digits as an image folder, with damaged and odd files mixed in.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--damaged", type=int, default=50, help="files that can't be used (default 50)")
    parser.add_argument("--odd", type=int, default=0, help="files of rare but sound kinds (default 0)")
    parser.add_argument("--per-class", type=int, default=None, help="sound images a class (default all, 1,797 in sum)")
    parser.add_argument("--ratio", type=float, default=1.0, help="class 0 over class 9, an uneven set (default 1: even)")
    options = parser.parse_args()
    mixed = make(options.folder, options.damaged, options.odd, options.per_class, options.ratio)
    print(f"{options.folder}: digits with {len(mixed)} damaged or odd files mixed in")


if __name__ == "__main__":
    main()
