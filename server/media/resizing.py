"""Makes a smaller file of an image, as the engine would see it."""

import contextlib
import io

from PIL import Image, ImageOps

from server.media.images import FORMATS, ImageSize
from server.media.source import ImageError

JPEG_QUALITY = 95


def resize_image(content: bytes, size: ImageSize) -> bytes:
    """An image whose data was checked, scaled to `size`: upright, on white where it is transparent.

    What was lossy becomes JPEG, the rest PNG. The same image and size give the same bytes, so that the engine's
    caches know them again.

    Raises:
        ImageError: it cannot be decoded after all.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            is_lossy = _is_lossy(image, content)
            longer = 2 * max(size.width, size.height)
            image.draft("RGB", (longer, longer))  # of a JPEG, decodes no more than twice what is needed
            image.load()
            picture = _on_white(image).resize((size.width, size.height), Image.Resampling.LANCZOS)
    except Exception:  # a malformed file can raise nearly anything, and some texts hold heap addresses
        raise ImageError("the image is truncated or corrupt") from None
    buffer = io.BytesIO()
    if is_lossy:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _is_lossy(image: Image.Image, content: bytes) -> bool:
    # The first chunk of a WebP that is nothing but a lossy picture.
    return image.format in ("JPEG", "MPO") or (image.format == "WEBP" and content[12:16] == b"VP8 ")


def _on_white(image: Image.Image) -> Image.Image:
    """Upright RGB, as `vllm.multimodal.media.image.ImageMediaIO.load_bytes` makes it."""
    with contextlib.suppress(Exception):  # the engine leaves an image as it is where its metadata cannot be read
        image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    opaque = image.convert("RGBA")
    picture = Image.new("RGB", opaque.size, (255, 255, 255))
    picture.paste(opaque, mask=opaque.getchannel("A"))
    return picture
