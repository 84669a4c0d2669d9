"""Images from paths, data URLs and bytes: checked by their header first, then decoded as the engine decodes them."""

import base64
import binascii
import contextlib
import io
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps

from distill.data.bad_samples import BadSampleError
from distill.data.downloads import Downloads
from distill.data.records import ImageRef
from distill.recipe import ImagesConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_MEASURED_PATHS = 2**17
# EXIF orientations that turn an image on its side.
_SIDEWAYS = (5, 6, 7, 8)


class ImageSize(NamedTuple):
    """What stands for an image in a sample that is only measured."""

    width: int
    height: int


class ImageReader:
    """Reads images under limits; an image beyond the limit on pixels is never decoded."""

    def __init__(self, config: ImagesConfig) -> None:
        self._config = config
        self._downloads = Downloads(config)
        # Haystacks share their images: each file is decoded once while the data are scanned.
        self._measure_path = lru_cache(maxsize=_MEASURED_PATHS)(self._measure)

    def load(self, ref: ImageRef) -> Image.Image:
        """The image as vLLM shows it to a model: upright by its EXIF data, RGB, transparency on white.

        Raises:
            BadSampleError: missing, unreadable, or over a limit.
        """
        image = self._open(ref)
        _decode(image, ref)
        with contextlib.suppress(Exception):  # damaged EXIF data, which vLLM ignores too
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)

    def measure(self, ref: ImageRef) -> ImageSize:
        """The size of the image that `load` gives, after making sure that it decodes.

        Raises:
            BadSampleError: as `load`.
        """
        is_path = isinstance(ref, str) and not is_url(ref)
        return self._measure_path(ref) if is_path else self._measure(ref)

    def _measure(self, ref: ImageRef) -> ImageSize:
        image = self._open(ref)
        width, height = image.size
        if image.format == "JPEG":
            # All of the coded data is still read; only the inverse transform is done at an eighth of the size.
            image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
        _decode(image, ref)
        orientation = None
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        return ImageSize(height, width) if orientation in _SIDEWAYS else ImageSize(width, height)

    def _open(self, ref: ImageRef) -> Image.Image:
        content = self._content(ref)
        if len(content) > self._config.max_bytes:
            raise _unreadable(ref, f"at most {self._config.max_bytes} bytes, got {len(content)}")
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _unreadable(ref, f"at most {self._config.max_pixels} pixels ({error})") from error
        except Exception as error:  # a damaged file can raise nearly anything here
            raise _unreadable(ref, f"an image ({', '.join(FORMATS)})") from error
        if image.width * image.height > self._config.max_pixels:
            size = f"{image.width}x{image.height}"
            raise _unreadable(ref, f"at most {self._config.max_pixels} pixels, its header says {size}")
        return image

    def _content(self, ref: ImageRef) -> bytes:
        if isinstance(ref, bytes):
            return ref
        if ref.startswith("data:"):
            try:
                return base64.b64decode(ref.partition(";base64,")[2], validate=True)
            except binascii.Error as error:
                raise _unreadable(ref, f"an image in base64 ({error})") from error
        if is_url(ref):
            return self._downloads.read(ref)
        try:
            if not Path(ref).is_file():
                raise BadSampleError("missing image", f"{ref}: no such file, expected an image")
            with Path(ref).open("rb") as file:
                return file.read(self._config.max_bytes + 1)
        except OSError as error:
            raise BadSampleError("missing image", f"{ref[:200]}: {error.strerror}, expected an image") from error


def is_url(ref: str) -> bool:
    """Whether a reference is anything but a path."""
    return ref.startswith("data:") or "://" in ref


def image_ref(url: str, folder: Path) -> str:
    """A URL as it is, a path from the folder."""
    return url if is_url(url) else str(folder / url)


def _decode(image: Image.Image, ref: ImageRef) -> None:
    try:
        image.load()
    except Exception as error:  # as above
        raise _unreadable(ref, f"an image that decodes ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _unreadable(ref: ImageRef, expectation: str) -> BadSampleError:
    shown = f"{len(ref)} bytes" if isinstance(ref, bytes) else ref if len(ref) <= 200 else f"{ref[:60]}..."
    return BadSampleError("unreadable image", f"image: {shown}: expected {expectation}")
