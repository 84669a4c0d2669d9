"""Checks one image of a request: its data URL, its header and that it decodes, all under limits."""

import io
from dataclasses import dataclass

import pybase64
from PIL import Image

from server.media.source import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Pixels of an image, by its header."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def decode_data_url(url: str, limits: ImageLimits) -> bytes:
    """The bytes of a `data:image/...;base64,` URL, the one form in which images are accepted.

    Raises:
        ImageError: not a base64 data URL, bad base64, empty or over the limit on bytes.
    """
    if url[:5].lower() != "data:":
        raise ImageError(f"expected a data: URL with base64 data, got {_scheme(url)}; links are not fetched")
    head, comma, data = url[5:].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError("expected data:image/<type>;base64,<data>")
    if head[-6:] != "base64":
        raise ImageError("expected the word base64 in lower case before the comma")
    # Four characters hold three bytes, so an oversized image is refused before it is decoded.
    if len(data) * 3 // 4 > limits.max_bytes + 2:
        raise ImageError(f"about {len(data) * 3 // 4} bytes, expected at most {limits.max_bytes}")
    try:
        content = pybase64.b64decode(data, validate=True)
    except ValueError:
        raise ImageError("the base64 data is malformed") from None
    if not content:
        raise ImageError("the image is empty")
    if len(content) > limits.max_bytes:
        raise ImageError(f"{len(content)} bytes, expected at most {limits.max_bytes}")
    return content


def read_header(content: bytes, limits: ImageLimits) -> ImageSize:
    """The size that an image declares, without decoding it.

    Raises:
        ImageError: not one of `FORMATS`, or over the limit on pixels.
    """
    try:
        with _open(content) as image:
            size = ImageSize(width=image.width, height=image.height)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"it declares far more pixels than the {limits.max_pixels} allowed") from None
    if size.pixels == 0:
        raise ImageError(f"{size.width}x{size.height} pixels, expected at least 1x1")
    if size.pixels > limits.max_pixels:
        raise ImageError(f"{size.width}x{size.height} = {size.pixels} pixels, expected at most {limits.max_pixels}")
    return size


def verify_pixels(content: bytes) -> None:
    """Decodes an image whose header was checked, so that a broken one never reaches the engine.

    Raises:
        ImageError: truncated or corrupt.
    """
    with _open(content) as image:
        if image.format == "JPEG":
            # All entropy-coded data is still read; only the inverse transform is done at an eighth of the size.
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        try:
            image.load()
        except Exception:  # as in `_open`
            raise ImageError("the image is truncated or corrupt") from None


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:  # a malformed file can raise nearly anything here, and some texts hold heap addresses
        raise ImageError(f"not a readable image; expected {', '.join(FORMATS)}") from None


def _scheme(url: str) -> str:
    scheme, colon, _ = url[:16].partition(":")
    return f"a {scheme.lower()}: URL" if colon and scheme.isalnum() else "something else"
