"""Reading one image: what is converted, what is refused, and that nothing else ever leaves the decoder."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.sources import decoding
from pipeline.sources.decoding import decode
from pipeline.sources.source import Mended, Reason, Unreadable
from tests.pipeline.labelled_images import encode

pytestmark = pytest.mark.filterwarnings("ignore")    # pytest undoes the module's own filter of Pillow's remarks

FULL = 10**6  # a resolution at which no JPEG is decoded at a fraction of its size


def ramp(height: int = 24, width: int = 36) -> np.ndarray:
    """uint8 (H, W, 3), smooth, every channel different."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (height + width - 2)], -1
    ).astype(np.uint8)


def grey() -> np.ndarray:
    return ramp()[:, :, 0]


def png(width: int, height: int, depth: int, colour: int, body: bytes, *others: tuple[bytes, bytes]) -> bytes:
    """A PNG chunk by chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunk(*o) for o in others)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def reason_of(data: bytes) -> Reason:
    with pytest.raises(Unreadable) as caught:
        decode(data, FULL)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels, mended = decode(encode(ramp(), kind, **options), FULL)
    assert mended == () and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, ramp())


def test_a_constant_image_is_fine() -> None:
    pixels, mended = decode(encode(np.zeros((5, 5), np.uint8)), FULL)
    assert pixels.shape == (5, 5, 1) and not pixels.any() and mended == ()


def test_sixteen_bit_grey_by_full_range() -> None:
    values = np.array([[0, 128, 257, 32767], [32768, 65279, 65534, 65535]], np.uint16)
    pixels, mended = decode(encode(values), FULL)
    assert mended == (Mended.SIXTEEN_BIT,)
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values / 257))


def test_sixteen_bit_colour_is_seen() -> None:
    wide = ramp().astype(np.uint16) * 257
    data = cv2.imencode(".png", wide[:, :, ::-1])[1].tobytes()
    pixels, mended = decode(data, FULL)
    assert mended == (Mended.SIXTEEN_BIT,)
    np.testing.assert_array_equal(pixels, ramp())


def test_integers_of_no_known_range_are_refused() -> None:
    assert reason_of(encode(np.array([[-5, 70000]], np.int32), "TIFF")) is Reason.MODE


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_pixels(top: float) -> None:
    values = (grey() / 255 * top).astype(np.float32)
    pixels, mended = decode(encode(values, "TIFF"), FULL)
    assert mended == (Mended.FLOAT,)
    np.testing.assert_array_equal(pixels[:, :, 0], grey())


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.5, 256.0])
def test_float_pixels_of_no_known_range_are_refused(odd: float) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = odd
    assert reason_of(encode(values, "TIFF")) is Reason.MODE


def test_one_bit() -> None:
    image = Image.fromarray(grey()).convert("1", dither=Image.Dither.NONE)
    buffer = encode(np.asarray(image))
    pixels, mended = decode(buffer, FULL)
    assert mended == (Mended.ONE_BIT,) and set(np.unique(pixels)) == {0, 255}
    np.testing.assert_array_equal(pixels[:, :, 0], np.where(grey() >= 128, 255, 0))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_palette() -> None:
    image = Image.fromarray(ramp()).quantize(8)
    pixels, mended = decode(saved(image, "PNG"), FULL)
    assert mended == (Mended.PALETTE,)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_cmyk_is_not_inverted() -> None:
    pixels, mended = decode(saved(Image.fromarray(ramp()).convert("CMYK"), "JPEG", quality=100), FULL)
    assert mended == (Mended.CMYK,)
    assert np.abs(pixels.astype(int) - ramp()).mean() < 4  # inverted it would be some 100


def test_transparency_lies_over_white() -> None:
    layered = np.dstack([ramp(), np.full(ramp().shape[:2], 255, np.uint8)])
    layered[0, 0] = (10, 20, 30, 0)
    layered[1, 1] = (0, 0, 0, 127)
    pixels, mended = decode(encode(layered), FULL)
    assert mended == (Mended.ALPHA,)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 1].tolist() == [128, 128, 128]
    np.testing.assert_array_equal(pixels[2:], ramp()[2:])


def test_an_opaque_alpha_channel_is_nothing_odd() -> None:
    pixels, mended = decode(saved(Image.fromarray(grey()).convert("LA"), "PNG"), FULL)
    assert mended == ()
    np.testing.assert_array_equal(pixels[:, :, 0], grey())


def test_a_transparent_colour_lies_over_white() -> None:
    body = b"".join(b"\0" + row.tobytes() for row in grey())
    data = png(36, 24, 8, 0, body, (b"tRNS", struct.pack(">H", 0)))
    pixels, mended = decode(data, FULL)
    assert mended == (Mended.ALPHA,)
    np.testing.assert_array_equal(pixels[:, :, 0], np.where(grey() == 0, 255, grey()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    upright = Image.fromarray(ramp())
    lying = upright.transpose(Image.Transpose[undo[orientation]]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        pixels, mended = decode(saved(lying, kind, exif=exif), FULL)
        assert mended == ((Mended.ROTATION,) if orientation > 1 else ())
        np.testing.assert_array_equal(pixels, ramp())


def test_broken_exif_does_not_lose_the_image() -> None:
    data = saved(Image.fromarray(ramp()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\xff\xff")
    assert decode(data, FULL)[0].shape == ramp().shape


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several(kind: str) -> None:
    frames = [Image.fromarray(grey()), Image.fromarray(255 - grey())]
    data = saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    pixels, mended = decode(data, FULL)
    assert Mended.FIRST_FRAME in mended
    np.testing.assert_array_equal(pixels[:, :, 0], grey())


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", Reason.EMPTY),
        (b"hello, I am a text\n", Reason.NOT_AN_IMAGE),
        (b"<!DOCTYPE html>" + b" " * 2000, Reason.NOT_AN_IMAGE),
        (bytes(range(256)) * 4, Reason.NOT_AN_IMAGE),
        (encode(ramp())[:30], Reason.TRUNCATED),
        (encode(ramp())[:-40], Reason.TRUNCATED),
        (encode(ramp(), "JPEG")[:-60], Reason.TRUNCATED),
        (encode(ramp(), "TIFF")[:300], Reason.TRUNCATED),
        (png(60_000, 60_000, 8, 0, b"\0" * 100), Reason.BOMB),
        (png(8_000, 8_000, 1, 0, b"\0" * 100), Reason.BOMB),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.NOT_AN_IMAGE),
    ],
    ids=[
        "empty",
        "text",
        "html",
        "bytes",
        "png header",
        "cut png",
        "cut jpeg",
        "cut tiff",
        "bomb",
        "1-bit bomb",
        "eps",
    ],
)
def test_what_is_refused_and_why(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    data = png(60_000, 60_000, 8, 0, b"\0" * (64 << 20))  # 64 KB that unpack to 64 MB and more
    tracemalloc.start()
    assert reason_of(data) is Reason.BOMB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_flipped_bytes_in_the_pixels_are_noticed() -> None:
    data = bytearray(encode(ramp()))
    at = data.index(b"IDAT") + 30
    data[at : at + 4] = bytes(b ^ 0xFF for b in data[at : at + 4])
    assert reason_of(bytes(data)) in (Reason.CORRUPT, Reason.TRUNCATED)


def test_large_jpegs_are_decoded_small_but_never_too_small() -> None:
    data = encode(np.asarray(Image.fromarray(ramp()).resize((1600, 1200))), "JPEG", quality=95)
    pixels, _ = decode(data, 32)
    assert 96 <= min(pixels.shape[:2]) < 1200
    small = np.asarray(Image.fromarray(pixels).resize((36, 24), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - ramp()).mean() < 6


FAST = {
    "png grey": encode(grey()),
    "png colour": encode(ramp()),
    "jpeg grey": encode(grey(), "JPEG"),
    **{
        f"jpeg {s} {p} {q}": encode(ramp(h, w), "JPEG", subsampling=s, progressive=p, quality=q)
        for s in (0, 1, 2)
        for p in (False, True)
        for q, h, w in ((75, 24, 36), (95, 33, 17))
    },
}


@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_gives_pillows_pixels(name: str) -> None:
    fast = decoding._decode_plain(FAST[name])
    assert fast is not None, "not taken: the test is void"
    np.testing.assert_array_equal(fast, decoding._decode_any(FAST[name], FULL)[0])


@pytest.mark.parametrize(
    "data",
    [
        encode(np.dstack([ramp(), grey()])),  # alpha
        encode(grey().astype(np.uint16) * 257),
        saved(Image.fromarray(ramp()).quantize(8), "PNG"),
        saved(Image.fromarray(ramp()).convert("CMYK"), "JPEG"),
        png(36, 24, 8, 0, b"\0" * 37 * 24, (b"tRNS", struct.pack(">H", 0))),
        encode(ramp())[:-1],
        encode(ramp(), "JPEG")[:-1],
        encode(ramp())[:-13] + b"!" + encode(ramp())[-12:],  # a wrong checksum at the end of the pixels
    ],
)
def test_the_fast_path_keeps_off_what_is_not_plain_and_whole(data: bytes) -> None:
    assert decoding._decode_plain(data) is None


SEEDS = [encode(ramp(), k) for k in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000")] + [
    encode(grey(), "PNG"),
    encode(grey(), "TIFF", compression="tiff_lzw"),
    encode(grey().astype(np.uint16), "PNG"),
    saved(Image.fromarray(ramp()).quantize(8), "GIF"),
    saved(Image.fromarray(ramp()).convert("CMYK"), "JPEG"),
]


@settings(max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 10**6),
    st.binary(max_size=12),
)
def test_damage_of_any_kind_leaves_as_a_reason_or_an_image(
    seed: bytes, flips: list[tuple[int, int]], cut: int | None, inserted: bytes
) -> None:
    data = bytearray(seed)
    for at, value in flips:
        data[at % len(data) if at % 3 else at % min(len(data), 40)] = value
    if cut is not None:
        at = cut % len(data)
        data = data[:at] + inserted
    try:
        pixels, _ = decode(bytes(data), 32)
    except Unreadable as e:
        assert isinstance(e.reason, Reason) and e.detail
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size
