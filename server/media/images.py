"""Checks one image: its header, and that it decodes; all as the engine will see it.

The engine turns an image as its EXIF or XMP orientation says, takes the first frame, and converts to RGB on white
(`vllm.multimodal.media.image.ImageMediaIO.load_bytes`), with the same Pillow functions as are used here.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from server.media.source import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
# What may hold an orientation; a PNG may bring it after its pixels.
PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Pixels of an image as the engine sees it: turned upright."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def quiet_pillow() -> None:
    """Keeps Pillow's warnings about strange files out of the log: their texts are the client's to choose."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_header(content: bytes, max_pixels: int) -> ImageSize:
    """The size that an image declares, turned upright; only a PNG with metadata after its pixels is decoded.

    Raises:
        ImageError: not one of `FORMATS`, or over the limit on pixels.
    """
    with _open(content, max_pixels) as image:
        width, height = image.size
        if width * height == 0:
            raise ImageError(f"{width}x{height} pixels, expected at least 1x1")
        if width * height > max_pixels:
            raise ImageError(f"{width}x{height} = {width * height} pixels, expected at most {max_pixels}")
        if image.format == "PNG" and _has_late_metadata(content):
            _load(image)
        if _is_turned(image.info):
            width, height = height, width
    return ImageSize(width=width, height=height)


def verify_pixels(content: bytes, max_pixels: int) -> bytes | None:
    """Decodes an image whose header was checked, so that a broken one never reaches the engine.

    Returns:
        Another file of the same picture where the engine would misread this one, else None: of 16-bit grey it
        keeps only the lowest 8 bits' range, so that nearly everything would be white.

    Raises:
        ImageError: truncated or corrupt.
    """
    with _open(content, max_pixels) as image:
        if image.format in ("JPEG", "MPO"):
            # All entropy-coded data is still read; only the inverse transform is done at an eighth of the size.
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        _load(image)
        return _to_8_bits(image) if image.mode.startswith("I;16") else None


def _open(content: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"it declares far more pixels than the {max_pixels} allowed") from None
    except Exception:  # a malformed file can raise nearly anything here, and some texts hold heap addresses
        raise ImageError(f"not a readable image; expected {', '.join(FORMATS)}") from None


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception:  # as in `_open`
        raise ImageError("the image is truncated or corrupt") from None


def _has_late_metadata(content: bytes) -> bool:
    pixels = content.find(b"IDAT")
    return any(content.find(kind, pixels) >= 0 for kind in PNG_METADATA)


def _is_turned(info: dict[Any, Any]) -> bool:
    """Whether upright means width for height: asks the function that the engine uses, with two pixels."""
    stand_in = Image.new("L", (2, 1))
    stand_in.info = info
    # The engine leaves an image as it is where its metadata cannot be read.
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(stand_in).width == 1
    return False


def _to_8_bits(image: Image.Image) -> bytes:
    upright = image
    with contextlib.suppress(Exception):  # as in `_is_turned`
        upright = ImageOps.exif_transpose(image)
    picture = upright.point(lambda value: value * (1 / 257)).convert("L")
    picture.info = {}
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
