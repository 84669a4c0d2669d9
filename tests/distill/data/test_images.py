import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from distill.data.bad_samples import BadSampleError
from distill.data.images import ImageReader, ImageSize
from distill.recipe import ImagesConfig


@pytest.fixture
def reader() -> ImageReader:
    return ImageReader(ImagesConfig(max_pixels=10_000, max_bytes=50_000))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def header_only(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and whose pixels nobody could decode."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 80)], ids=str)
def test_the_measured_size_is_that_of_the_loaded_image(
    reader: ImageReader, tmp_path: Path, format: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.linear_gradient("L").resize(size).convert("RGB"), format))
    loaded = reader.load(str(path))
    assert loaded.mode == "RGB"
    assert reader.measure(str(path)) == ImageSize(*loaded.size) == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_images_stand_upright(reader: ImageReader, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(Image.new("RGB", (40, 20)), format, exif=exif)
    assert reader.load(content).size == reader.measure(content) == ((20, 40) if orientation > 4 else (40, 20))


def test_transparency_is_on_white(reader: ImageReader) -> None:
    content = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")
    assert reader.load(content).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2))
    assert reader.load(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert reader.load(encoded(palette, "PNG")).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("take", ["load", "measure"])
@pytest.mark.parametrize("size", [(101, 100), (20_000, 20_000)], ids=str)
def test_an_image_of_too_many_pixels_is_refused_by_its_header(
    reader: ImageReader, take: str, size: tuple[int, int]
) -> None:
    """Its pixels do not decode, so the message tells what was looked at."""
    with pytest.raises(BadSampleError, match="expected at most 10000 pixels") as caught:
        getattr(reader, take)(header_only(*size))
    assert caught.value.reason == "unreadable image"


@pytest.mark.parametrize("take", ["load", "measure"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_cut_off_image_is_refused(reader: ImageReader, take: str, format: str) -> None:
    content = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), format)
    with pytest.raises(BadSampleError, match="expected an image") as caught:
        getattr(reader, take)(content[: len(content) // 2])
    assert caught.value.reason == "unreadable image"


def test_a_file_of_too_many_bytes_is_refused(reader: ImageReader, tmp_path: Path) -> None:
    (tmp_path / "large.bmp").write_bytes(b"BM" + bytes(50_000))
    with pytest.raises(BadSampleError, match="expected at most 50000 bytes"):
        reader.measure(str(tmp_path / "large.bmp"))


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_what_is_no_file_is_a_missing_image(reader: ImageReader, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSampleError, match="no such file") as caught:
        reader.measure(str(tmp_path / name))
    assert caught.value.reason == "missing image"
