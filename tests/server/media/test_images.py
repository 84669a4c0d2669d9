"""Images that must pass, and dozens that must not, each with a clear reason and before it costs anything."""

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from server.media.images import ImageError, ImageLimits, decode_data_url, read_header, verify_pixels

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=1_000_000)
KINDS = ("PNG", "JPEG", "WEBP", "GIF")


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def check(content: bytes) -> None:
    read_header(content, LIMITS)
    verify_pixels(content)


@pytest.mark.parametrize("kind", KINDS)
def test_good_images_pass(picture: Callable[..., bytes], kind: str) -> None:
    content = picture(37, 21, kind)
    url = f"data:image/anything;base64,{base64.b64encode(content).decode()}"

    assert decode_data_url(url, LIMITS) == content
    size = read_header(content, LIMITS)
    assert (size.width, size.height, size.pixels) == (37, 21, 777)
    verify_pixels(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_passes(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")

    assert read_header(buffer.getvalue(), LIMITS).width == 40
    verify_pixels(buffer.getvalue())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/x.png", "a https: URL; links are not fetched"),
        ("http://127.0.0.1:8000/health", "a http: URL; links are not fetched"),
        ("file:///etc/passwd", "a file: URL"),
        ("AAAA", "something else"),
        ("", "something else"),
        ("data:image/png,AAAA", "expected data:image"),
        ("data:image/png;base64", "expected data:image"),
        ("data:image/png;BASE64,AAAA", "lower case"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,AAA", "malformed"),
        ("data:image/png;base64,AA\nAA", "malformed"),
        ("data:image/png;base64,AA-_", "malformed"),
        ("data:image/png;base64," + "A" * 140_000, "expected at most 100000"),
    ],
)
def test_bad_urls_are_refused(url: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_data_url(url, LIMITS)


@pytest.mark.parametrize("size", [(1001, 1000), (20_000, 20_000), (2**31 - 1, 1), (65535, 65535)])
def test_a_bomb_is_refused_by_its_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="1000000"):
        read_header(png_header(*size), LIMITS)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA"])
def test_other_formats_are_refused(picture: Callable[..., bytes], kind: str) -> None:
    with pytest.raises(ImageError, match="expected PNG, JPEG, WEBP, GIF"):
        read_header(picture(16, 16, kind), LIMITS)


@pytest.mark.parametrize(
    "content", [b"x", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"%!PS", b"\xff\xd8\xff", bytes(999)]
)
def test_what_is_no_image_is_refused_without_quoting_it(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^not a readable image; expected PNG, JPEG, WEBP, GIF$"):
        read_header(content, LIMITS)


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


def test_only_the_first_frame_of_an_animation_is_decoded() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])

    assert read_header(buffer.getvalue(), LIMITS).pixels == 200
    verify_pixels(buffer.getvalue())
