"""Images that must pass, and dozens that must not, each with a clear reason and before it costs anything."""

import contextlib
import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from server.media.images import quiet_pillow, read_header, verify_pixels
from server.media.source import ImageError

MAX_PIXELS = 1_000_000


@pytest.fixture(autouse=True)
def _as_in_the_gateway() -> Iterator[None]:
    with warnings.catch_warnings():
        quiet_pillow()
        yield


KINDS = ("PNG", "JPEG", "WEBP", "GIF")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b"")


def check(content: bytes) -> None:
    read_header(content, MAX_PIXELS)
    verify_pixels(content, MAX_PIXELS)


@pytest.mark.parametrize("kind", KINDS)
def test_good_images_pass(picture: Callable[..., bytes], kind: str) -> None:
    content = picture(37, 21, kind)
    size = read_header(content, MAX_PIXELS)
    assert (size.width, size.height, size.pixels) == (37, 21, 777)
    verify_pixels(content, MAX_PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_passes(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")

    assert read_header(buffer.getvalue(), MAX_PIXELS).width == 40
    verify_pixels(buffer.getvalue(), MAX_PIXELS)


@pytest.mark.parametrize("size", [(1001, 1000), (20_000, 20_000), (2**31 - 1, 1), (65535, 65535)])
def test_a_bomb_is_refused_by_its_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="1000000"):
        read_header(png_header(*size), MAX_PIXELS)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_other_formats_are_refused(picture: Callable[..., bytes], kind: str) -> None:
    with pytest.raises(ImageError, match="expected PNG, JPEG, WEBP, GIF"):
        read_header(picture(16, 16, kind), MAX_PIXELS)


@pytest.mark.parametrize(
    "content", [b"x", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"%!PS", b"\xff\xd8\xff", bytes(999)]
)
def test_what_is_no_image_is_refused_without_quoting_it(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^not a readable image; expected PNG, JPEG, WEBP, GIF$"):
        read_header(content, MAX_PIXELS)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_images_are_refused(picture: Callable[..., bytes], kind: str, share: float) -> None:
    content = picture(120, 90, kind)

    cut = content[: int(len(content) * share)]

    with pytest.raises(ImageError, match=r"truncated or corrupt|not a readable image"):
        check(cut)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_images_never_raise_anything_else(picture: Callable[..., bytes], kind: str) -> None:
    content, chance, reasons = picture(64, 48, kind), random.Random(0), []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 20)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            check(bytes(damaged))
        except ImageError as error:
            reasons.append(str(error))
    assert len(reasons) > 5
    assert not any(" at 0x" in reason for reason in reasons)


def as_the_engine_sees_it(content: bytes) -> tuple[int, int]:
    """vLLM's `normalize_image` and `ImageMediaIO.load_bytes`, up to the conversion to RGB."""
    image = Image.open(io.BytesIO(content))
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    image.load()
    return image.size


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def turned(kind: str, orientation: int, place: str) -> bytes:
    """An image of 30x20 with an orientation in EXIF or XMP."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"exif": exif(orientation)}
    if place == "xmp":
        xmp = XMP % orientation
        if kind == "PNG":
            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", xmp)
            options = {"pnginfo": info}
        else:
            options = {"xmp": xmp.encode()}
    Image.new("RGB", (30, 20), (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("place", ["exif", "xmp"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_size_is_that_of_the_image_turned_upright(kind: str, orientation: int, place: str) -> None:
    content = turned(kind, orientation, place)

    size = read_header(content, MAX_PIXELS)

    assert (size.width, size.height) == ((20, 30) if 5 <= orientation <= 8 else (30, 20))
    assert (size.width, size.height) == as_the_engine_sees_it(content)


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_orientation_after_a_pngs_pixels_counts(orientation: int) -> None:
    plain, data = io.BytesIO(), exif(orientation).removeprefix(b"Exif\0\0")
    Image.new("RGB", (30, 20)).save(plain, "PNG")
    end = plain.getvalue().index(b"IEND") - 4
    content = plain.getvalue()[:end] + png_chunk(b"eXIf", data) + plain.getvalue()[end:]

    size = read_header(content, MAX_PIXELS)

    assert (size.width, size.height) == as_the_engine_sees_it(content) == ((20, 30) if orientation == 6 else (30, 20))


def test_damaged_metadata_turns_an_image_here_as_it_does_in_the_engine() -> None:
    chance, content, sizes = random.Random(1), turned("JPEG", 6, "exif"), set()
    start, end = content.index(b"Exif"), content.index(b"Exif") + len(exif(6))
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(start, end)] = chance.randrange(256)
        size = read_header(bytes(damaged), MAX_PIXELS)
        assert (size.width, size.height) == as_the_engine_sees_it(bytes(damaged))
        sizes.add((size.width, size.height))
    assert sizes == {(30, 20), (20, 30)}


def test_16_bit_grey_goes_to_the_engine_as_8_bits_which_it_would_else_see_white() -> None:
    grey = Image.frombytes("I;16", (256, 64), bytes(256 * 64) + bytes([0, 255]) * (128 * 64))
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", exif=exif(6))

    readable = verify_pixels(buffer.getvalue(), MAX_PIXELS)

    assert readable is not None
    with Image.open(io.BytesIO(readable)) as image:
        assert (image.mode, image.size) == ("L", as_the_engine_sees_it(buffer.getvalue()))
        assert image.getextrema() == (0, 0xFF00 // 257)
    assert verify_pixels(readable, MAX_PIXELS) is None


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_counts_as_its_first_frame(kind: str) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])

    assert read_header(buffer.getvalue(), MAX_PIXELS).pixels == 200
    verify_pixels(buffer.getvalue(), MAX_PIXELS)
