"""A smaller file shows what the engine would have seen of the larger one."""

import io
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw

from server.media.images import ImageSize
from server.media.resizing import resize_image
from server.media.source import ImageError

TARGET = ImageSize(width=60, height=40)


def drawing(mode: str = "RGB", size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Red left of blue, above green."""
    image = Image.new("RGB", size, (0, 160, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 2, size[1] // 2), fill=(200, 0, 0))
    draw.rectangle((size[0] // 2, 0, size[0], size[1] // 2), fill=(0, 0, 200))
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def engine_sees(content: bytes) -> Image.Image:
    from vllm.multimodal.media.image import ImageMediaIO

    return ImageMediaIO().load_bytes(content).media


def assert_alike(found: Image.Image, expected: Image.Image) -> None:
    """Averages of the four quarters: what is dithered is even from afar."""
    quarters = [image.resize((2, 2), Image.Resampling.BOX).tobytes() for image in (found, expected)]
    assert all(abs(a - b) <= 8 for a, b in zip(*quarters, strict=True)), [list(quarter) for quarter in quarters]


@pytest.mark.parametrize(
    ("kind", "options", "becomes"),
    [
        ("PNG", {}, "PNG"),
        ("GIF", {}, "PNG"),
        ("JPEG", {"quality": 90}, "JPEG"),
        ("WEBP", {"quality": 90}, "JPEG"),
        ("WEBP", {"lossless": True}, "PNG"),
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (3000, 2000)])
def test_the_kind_of_file_stays_lossy_or_lossless(
    kind: str, options: dict[str, object], becomes: str, size: tuple[int, int]
) -> None:
    content = saved(drawing(size=size), kind, **options)

    smaller = resize_image(content, TARGET)

    with Image.open(io.BytesIO(smaller)) as image:
        assert (image.format, image.size, image.mode) == (becomes, (60, 40), "RGB")
    assert_alike(engine_sees(smaller), engine_sees(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_it_is_turned_as_the_engine_turns_it(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(drawing(), kind, exif=exif)
    upright = engine_sees(content)

    smaller = resize_image(content, ImageSize(width=upright.width // 5, height=upright.height // 5))

    assert_alike(engine_sees(smaller), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_every_mode_looks_as_it_does_to_the_engine(mode: str) -> None:
    image = drawing(mode)
    options: dict[str, object] = {}
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode == "P":
        options["transparency"] = image.getpixel((10, 10))
    content = saved(image, "JPEG" if mode == "CMYK" else "PNG", **options)

    assert_alike(engine_sees(resize_image(content, TARGET)), engine_sees(content))


def test_the_same_image_gives_the_same_bytes() -> None:
    content = saved(drawing(), "JPEG")

    assert resize_image(content, TARGET) == resize_image(content, TARGET)


def test_a_broken_image_is_refused(picture: Callable[..., bytes]) -> None:
    with pytest.raises(ImageError, match="truncated or corrupt"):
        resize_image(picture(300, 200)[:-2000], TARGET)
