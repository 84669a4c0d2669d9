"""All images of a request under one budget; every one that fails is reported, each by its path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from server.errors import BadRequestError, Reason
from server.media.bounded import Bounded
from server.media.data_url import decode_data_url, estimate_bytes
from server.media.identity import Identity
from server.media.images import ImageSize, read_header, verify_pixels
from server.media.resizing import resize_image
from server.media.source import Content, DataUrl, ImageError, PlacedSource, read_source
from server.prompt.prompt_counter import PromptCounter
from server.requests.conversation import Conversation, ImageSource
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class RequestImage:
    """One image of a request: where its bytes are, and what is known of them."""

    path: str
    """`messages[0].content[17].image_url`"""
    content: DataUrl | Content
    uuid: str
    """The name under which the engine caches it."""
    size: ImageSize
    num_bytes: int
    is_verified: bool
    """Whether it is known to decode."""


class ImageChecker:
    """Checks the images of all requests, one image in memory at a time for each request.

    What is remembered of an image is its name and its size, so that a conversation's next turn decodes only what is
    new in it.
    """

    def __init__(self, settings: Settings, counter: PromptCounter, identity: Identity) -> None:
        self._settings = settings
        self._counter = counter
        self._identity = identity
        self._verified: Bounded[str, ImageSize] = Bounded(settings.max_remembered_images)
        # Name and bytes of what an uploaded file holds: its path never holds anything else.
        self._stored: Bounded[tuple[str, Path], tuple[str, int]] = Bounded(settings.max_remembered_images)

    def place(self, conversation: Conversation) -> list[PlacedSource]:
        """Where every image is, in the order of the prompt, held against the budget as far as that goes unread.

        Raises:
            BadRequestError: too many images, or too many bytes of them in the body.
        """
        sources = [_place(image) for image in conversation.images()]
        limit = self._settings.max_images
        if len(sources) > limit:
            raise BadRequestError(
                Reason.TOO_MANY_IMAGES,
                f"{len(sources)} images, expected at most {limit}.",
                param=sources[limit].path,
            )
        self._check_placed_bytes(sources)
        return sources

    def max_loaded_bytes(self, sources: Sequence[PlacedSource]) -> int:
        """What the budget leaves for images that are not in the body."""
        return max(0, self._settings.max_total_image_bytes - sum(map(_placed_bytes, sources)))

    def read(
        self, sources: Sequence[PlacedSource], loaded: Sequence[Content | ImageError], tenant: str
    ) -> list[RequestImage]:
        """Names and sizes of all images; what was seen before is not even opened, and hardly anything is decoded.

        Args:
            sources: from `place`.
            loaded: what came of each source that is not a data URL, in order.
            tenant: whose images they are.

        Raises:
            BadRequestError: all images that cannot be used, or the first one over the budget.
        """
        rest = iter(loaded)
        budget = _Budget(self._settings)
        images: list[RequestImage] = []
        failures: dict[str, Exception] = {}
        for placed in sources:
            source = placed.source
            content = source if isinstance(source, DataUrl | ImageError) else next(rest)
            try:
                image = self._read_one(placed.path, content, tenant)
                budget.take(image, self._counter.image_tokens(image.size))
            except ValueError as error:
                failures[placed.path] = error
            else:
                images.append(image)
        if failures:
            # The request ends here: those whose data is bad are told now, not when it comes again.
            self._verify_all(images, failures)
            _raise_for(failures, [placed.path for placed in sources])
        return images

    def verify(self, images: Sequence[RequestImage]) -> list[RequestImage]:
        """Decodes every image that was not seen to decode before; returns them as the engine shall get them.

        Raises:
            BadRequestError: all that are truncated or corrupt.
        """
        failures: dict[str, Exception] = {}
        verified = self._verify_all(images, failures)
        _raise_for(failures, [image.path for image in images])
        return verified

    def resize(self, images: Sequence[RequestImage], sizes: Mapping[int, ImageSize], tenant: str) -> list[RequestImage]:
        """Verified images, and in the places that `sizes` names a smaller file of the same picture.

        Raises:
            BadRequestError: all that cannot be decoded after all.
        """
        resized: list[RequestImage] = []
        failures: dict[str, Exception] = {}
        for place, image in enumerate(images):
            try:
                resized.append(self._resize_one(image, sizes[place], tenant) if place in sizes else image)
            except ImageError as error:
                failures[image.path] = error
        _raise_for(failures, [image.path for image in images])
        return resized

    def _resize_one(self, image: RequestImage, size: ImageSize, tenant: str) -> RequestImage:
        content = resize_image(read_content(image.content, self._settings.max_image_bytes), size)
        uuid = self._identity.of(content, tenant)
        return replace(image, content=content, uuid=uuid, size=size, num_bytes=len(content))

    def _check_placed_bytes(self, sources: Sequence[PlacedSource]) -> None:
        limit, total = self._settings.max_total_image_bytes, 0
        for placed in sources:
            total += _placed_bytes(placed)
            if total > limit:
                raise _over_budget(placed.path, f"about {total} bytes, more than the allowed {limit}")

    def _read_one(self, path: str, content: DataUrl | Content | ImageError, tenant: str) -> RequestImage:
        if isinstance(content, ImageError):
            raise content
        if isinstance(content, Path) and (image := self._recall(path, content, tenant)) is not None:
            return image
        data = read_content(content, self._settings.max_image_bytes)
        uuid = self._identity.of(data, tenant)
        if isinstance(content, Path):
            self._stored.put((tenant, content), (uuid, len(data)))
        known = self._verified.get(uuid)
        return RequestImage(
            path=path,
            content=content,
            uuid=uuid,
            size=known or read_header(data, self._settings.max_image_pixels),
            num_bytes=len(data),
            is_verified=known is not None,
        )

    def _recall(self, path: str, file: Path, tenant: str) -> RequestImage | None:
        """An uploaded image that was seen before, without opening it."""
        stored = self._stored.get((tenant, file))
        size = None if stored is None else self._verified.get(stored[0])
        if stored is None or size is None:
            return None
        uuid, num_bytes = stored
        return RequestImage(path=path, content=file, uuid=uuid, size=size, num_bytes=num_bytes, is_verified=True)

    def _verify_all(self, images: Sequence[RequestImage], failures: dict[str, Exception]) -> list[RequestImage]:
        verified: list[RequestImage] = []
        for image in images:
            try:
                verified.append(image if image.is_verified else self._verify_one(image))
            except ImageError as error:
                failures[image.path] = error
        return verified

    def _verify_one(self, image: RequestImage) -> RequestImage:
        data = read_content(image.content, self._settings.max_image_bytes)
        readable = verify_pixels(data, self._settings.max_image_pixels)
        if readable is not None:
            return replace(image, content=readable, num_bytes=len(readable), is_verified=True)
        self._verified.put(image.uuid, image.size)
        return replace(image, is_verified=True)


def read_content(content: DataUrl | Content, max_bytes: int) -> bytes:
    """An image's bytes, from wherever they are.

    Raises:
        ImageError: a bad data URL, a file that is gone, or more than `max_bytes`.
    """
    match content:
        case DataUrl():
            return decode_data_url(content, max_bytes)
        case Path():
            try:
                with content.open("rb") as file:
                    data = file.read(max_bytes + 1)
            except FileNotFoundError:
                raise ImageError("the uploaded file was deleted meanwhile") from None
        case bytes():
            data = content
    if not data:
        raise ImageError("the image is empty")
    if len(data) > max_bytes:
        raise ImageError(f"more than {max_bytes} bytes")
    return data


class _Budget:
    """What all images of a request may cost together."""

    def __init__(self, settings: Settings) -> None:
        self._limits = {
            "bytes": settings.max_total_image_bytes,
            "pixels": settings.max_total_pixels,
            "tokens": settings.max_image_tokens,
        }
        self._left = dict(self._limits)

    def take(self, image: RequestImage, tokens: int) -> None:
        """Raises BadRequestError at the first image that is too much."""
        for unit, amount in (("bytes", image.num_bytes), ("pixels", image.size.pixels), ("tokens", tokens)):
            self._left[unit] -= amount
            if self._left[unit] < 0:
                raise _over_budget(image.path, f"more than the allowed {self._limits[unit]} {unit}")


def _place(image: ImageSource) -> PlacedSource:
    try:
        return PlacedSource(path=image.path, source=read_source(image.part.image_url.url))
    except ImageError as error:
        return PlacedSource(path=image.path, source=error)


def _placed_bytes(placed: PlacedSource) -> int:
    return estimate_bytes(placed.source) if isinstance(placed.source, DataUrl) else 0


def _over_budget(path: str, what: str) -> BadRequestError:
    return BadRequestError(
        Reason.MEDIA_BUDGET_EXCEEDED,
        f"The images up to {path} have {what}, for one request together; send fewer or smaller ones.",
        param=path,
    )


def _raise_for(failures: Mapping[str, Exception], paths: Sequence[str]) -> None:
    if failures:
        failed = [path for path in paths if path in failures]
        listed = "; ".join(f"{path}: {failures[path]}" for path in failed)
        raise BadRequestError(
            Reason.INVALID_IMAGE,
            f"{len(failed)} of {len(paths)} images cannot be used. {listed}.",
            param=failed[0],
        )
