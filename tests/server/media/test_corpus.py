"""Images by the hundred, strange, damaged and hostile: what the gateway accepts the real engine answers, and counts
the same; everything else is refused by its path, in words that quote nothing of it."""

import base64
import io
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from server.media.images import quiet_pillow, read_header, verify_pixels
from server.media.source import ImageError

pytestmark = pytest.mark.engine

Make = Callable[..., Any]
MAX_PIXELS = 32_000_000


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def strange() -> Iterator[bytes]:
    """Valid, of kinds that are seldom met."""
    colours = Image.radial_gradient("L").resize((48, 32)).convert("RGB")
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield saved(colours.convert(mode), "PNG")
    yield saved(colours.convert("P"), "PNG", transparency=3)
    yield saved(colours, "PNG", transparency=(0, 0, 0))
    yield saved(Image.frombytes("I;16", (48, 32), bytes(range(256)) * 12), "PNG")
    yield png(4, 4, bytes(4 * 25), depth=16, colour=2)
    yield png(4, 4, bytes(4 * 33), depth=16, colour=6)
    for options in ({"progressive": True}, {"quality": 5}, {"subsampling": 0}, {"optimize": True}):
        yield saved(colours, "JPEG", **options)
    yield saved(colours.convert("CMYK"), "JPEG")
    yield saved(colours.convert("L"), "JPEG")
    yield saved(colours, "MPO", save_all=True, append_images=[colours.rotate(90)])
    yield saved(colours, "WEBP", lossless=True)
    yield saved(colours.convert("RGBA"), "WEBP")
    for kind in ("GIF", "WEBP", "PNG"):
        yield saved(colours, kind, save_all=True, append_images=[colours.rotate(90), colours.rotate(180)])
    yield saved(colours.convert("P"), "GIF", transparency=0)
    for orientation in range(1, 9):
        for kind in ("JPEG", "PNG", "WEBP"):
            yield saved(colours, kind, exif=exif(orientation))
    for size in ((1, 1), (2, 1), (1, 150), (150, 1), (3, 500), (1999, 10)):
        yield saved(Image.new("RGB", size, (200, 30, 90)), "PNG")
    yield saved(colours, "JPEG") + bytes(1000)
    yield saved(colours, "PNG") + b"<script>"


def hostile() -> Iterator[bytes]:
    """What must not reach an engine."""
    yield from (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!doctype html><p>no</p>", b"%PDF-1.7", b"GIF89a", b"x")
    yield from (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 ", bytes(500), b"%!PS-Adobe-3.0")
    huge = 2**31 - 1
    for size in ((60_000, 60_000), (huge, 1), (huge, huge), (0, 5), (8000, 8000), (1, 10_000), (10_000, 1)):
        yield png(*size, bytes(64))
    yield saved(Image.new("RGB", (10_000, 1)), "PNG")
    yield saved(Image.new("RGB", (1, 10_000)), "JPEG")
    for kind in ("BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "DDS", "EPS", "PDF"):
        yield saved(Image.new("RGB", (32, 32)), kind)


def damaged() -> Iterator[bytes]:
    """Cut short, or with bits turned over."""
    kinds = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})]
    chance = random.Random(0)
    noise = Image.frombytes("RGB", (48, 32), chance.randbytes(48 * 32 * 3))
    for kind, options in (*kinds, ("GIF", {})):
        content = saved(noise, kind, exif=exif(6), **options) if kind != "GIF" else saved(noise, kind)
        for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.995):
            yield content[: int(len(content) * share)]
        for _ in range(40):
            turned = bytearray(content)
            for _ in range(chance.choice([1, 1, 2, 8, 64])):
                turned[chance.randrange(len(turned))] ^= 1 << chance.randrange(8)
            yield bytes(turned)
        for _ in range(15):  # where the structure is
            turned = bytearray(content)
            turned[chance.randrange(min(200, len(turned)))] = chance.randrange(256)
            yield bytes(turned)


def parts_of(contents: list[bytes]) -> list[dict[str, Any]]:
    urls = [f"data:image/png;base64,{base64.b64encode(content).decode()}" for content in contents]
    return [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def is_accepted(content: bytes) -> bool:
    with warnings.catch_warnings():
        quiet_pillow()
        try:
            size = read_header(content, MAX_PIXELS)
            verify_pixels(content, MAX_PIXELS)
        except ImageError:
            return False
    return max(size.width, size.height) <= 200 * min(size.width, size.height)


@pytest.fixture(scope="module")
def accepted() -> list[bytes]:
    return [content for content in (*strange(), *hostile(), *damaged()) if is_accepted(content)]


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=300) as client:
        yield client


def test_strange_images_are_accepted_and_hostile_ones_are_not() -> None:
    assert all(is_accepted(content) for content in strange())
    assert not any(is_accepted(content) for content in hostile())
    outcomes = [is_accepted(content) for content in damaged()]
    assert len(outcomes) > 300
    assert 50 < sum(outcomes) < len(outcomes) - 50


def test_the_engine_answers_for_all_that_is_accepted_and_counts_the_same(
    http: httpx.Client, chat: Make, accepted: list[bytes]
) -> None:
    for start in range(0, len(accepted), 20):
        batch = accepted[start : start + 20]

        response = http.post("/v1/chat/completions", json=chat(parts_of(batch), max_tokens=1))

        assert response.status_code == 200, (start, response.text)
        usage = response.json()["usage"]
        assert int(response.headers["x-laid-prompt-tokens"]) == usage["prompt_tokens"]
        assert int(response.headers["x-laid-image-tokens"]) == usage["prompt_tokens_details"]["image_tokens"]


@pytest.mark.parametrize("kind", [hostile, damaged], ids=["hostile", "damaged"])
def test_every_refusal_names_the_path_and_quotes_nothing(
    http: httpx.Client, chat: Make, kind: Callable[[], Iterator[bytes]]
) -> None:
    refused = [content for content in kind() if not is_accepted(content)]
    for start in range(0, len(refused), 100):
        batch = refused[start : start + 100]

        response = http.post("/v1/chat/completions", json=chat(parts_of(batch)))

        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_image"), (start, error)
        assert re.findall(r"content\[(\d+)\]\.image_url: ", error["message"]) == [str(i) for i in range(len(batch))]
        assert re.search(r"0x[0-9a-f]{6,}|object at|/usr|/home|<svg|script|Traceback", error["message"]) is None
