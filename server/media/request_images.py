"""All images of a request under one budget; every one that fails is reported, each by its path."""

from dataclasses import dataclass

import msgspec

from server.errors import BadRequestError, Reason
from server.media.images import ImageLimits, ImageSize, decode_data_url, read_header, verify_pixels
from server.media.source import ImageError
from server.prompt.prompt_counter import PromptCounter
from server.requests.conversation import Conversation
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class RequestImage:
    """One image, known by its header."""

    path: str
    """`messages[0].content[17].image_url`"""
    content: bytes
    size: ImageSize


def read_images(conversation: Conversation, counter: PromptCounter, settings: Settings) -> list[RequestImage]:
    """Every image in the order of the prompt; none is decoded.

    Raises:
        BadRequestError: too many images, or all that cannot be used.
    """
    urls = [(source.path, msgspec.json.decode(source.part.image_url.url, type=str)) for source in conversation.images()]
    if len(urls) > settings.max_images:
        raise BadRequestError(
            Reason.TOO_MANY_IMAGES,
            f"{len(urls)} images, expected at most {settings.max_images}.",
            param=urls[settings.max_images][0],
        )
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    images: list[RequestImage] = []
    failures: list[tuple[str, str]] = []
    total_pixels = 0
    for path, url in urls:
        try:
            content = decode_data_url(url, limits)
            size = read_header(content, limits)
            counter.image_tokens(size)
        except ValueError as error:
            failures.append((path, str(error)))
            continue
        total_pixels += size.pixels
        if total_pixels > settings.max_total_pixels:
            failures.append((path, f"all images up to this one exceed {settings.max_total_pixels} pixels"))
            break
        images.append(RequestImage(path=path, content=content, size=size))
    _raise_for(failures, len(urls))
    return images


def verify_images(images: list[RequestImage]) -> None:
    """Decodes every image once.

    Raises:
        BadRequestError: all that are truncated or corrupt.
    """
    failures = []
    for image in images:
        try:
            verify_pixels(image.content)
        except ImageError as error:
            failures.append((image.path, str(error)))
    _raise_for(failures, len(images))


def _raise_for(failures: list[tuple[str, str]], num_images: int) -> None:
    if failures:
        listed = "; ".join(f"{path}: {message}" for path, message in failures)
        raise BadRequestError(
            Reason.INVALID_IMAGE,
            f"{len(failures)} of {num_images} images cannot be used. {listed}.",
            param=failures[0][0],
        )
