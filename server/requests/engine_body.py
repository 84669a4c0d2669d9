"""The JSON that an engine gets for a request, made of slices of the client's own: no image is copied or serialised.

Every image goes to the engine under the gateway's name for it (`uuid`, which vLLM takes as the key of its caches), and
without its data where the engine holds it already.
"""

import asyncio
from collections.abc import Container, Sequence

import msgspec
import pybase64

from server.errors import BadRequestError, Reason
from server.media.request_images import RequestImage, read_content
from server.media.source import DataUrl, ImageError
from server.requests.conversation import IMAGE_PARTS, Message
from server.requests.draft import Draft

Piece = bytes | memoryview
# Stands for an image while the rest is made into JSON, in which this byte cannot occur.
_HOLE = b"\0"


class EnginePayload(msgspec.Struct, frozen=True, kw_only=True):
    """A body as one engine gets it."""

    pieces: Sequence[Piece]
    omitted: frozenset[str]
    """Names of the images that are sent without their data."""


class EngineBody:
    """A request's body for any engine."""

    def __init__(self, draft: Draft, images: Sequence[RequestImage]) -> None:
        """`images` are the draft's own, in order."""
        asked = dict(draft.engine_parameters)
        if not draft.conversation.prompts:
            asked["messages"] = [_without_images(message) for message in draft.conversation.messages]
        self._texts = msgspec.json.encode(asked).split(_HOLE)
        self._images = images

    @property
    def uuids(self) -> frozenset[str]:
        """The names of all images."""
        return frozenset(image.uuid for image in self._images)

    async def payload(self, held: Container[str]) -> EnginePayload:
        """The body for an engine that holds some images already.

        Raises:
            BadRequestError: an uploaded file was deleted since it was checked.
        """
        omitted = frozenset(uuid for uuid in self.uuids if uuid in held)
        sent = [image for image in self._images if image.uuid not in omitted]
        if all(isinstance(image.content, DataUrl) for image in sent):
            pieces = self._pieces(omitted)
        else:
            pieces = await asyncio.to_thread(self._pieces, omitted)
        return EnginePayload(pieces=pieces, omitted=omitted)

    def _pieces(self, omitted: Container[str]) -> list[Piece]:
        pieces: list[Piece] = []
        small = [self._texts[0]]
        for image, text in zip(self._images, self._texts[1:], strict=True):
            small.append(b'{"type":"image_url","uuid":"%b","image_url":' % image.uuid.encode())
            if image.uuid in omitted:
                small += (b"null}", text)
            else:
                small.append(b'{"url":')
                pieces += (b"".join(small), _url(image))
                small = [b"}}", text]
        return [*pieces, b"".join(small)]


def _without_images(message: Message) -> Message:
    if not isinstance(message.content, list):
        return message
    parts = [msgspec.Raw(_HOLE) if isinstance(part, IMAGE_PARTS) else part for part in message.content]
    return msgspec.structs.replace(message, content=parts)


def _url(image: RequestImage) -> Piece:
    """The image's URL as a JSON string: the client's own, or one that holds what was loaded."""
    if isinstance(image.content, DataUrl):
        return memoryview(image.content.json)
    try:
        content = read_content(image.content, image.num_bytes)
    except ImageError as error:
        raise BadRequestError(Reason.INVALID_IMAGE, f"{image.path}: {error}.", param=image.path) from None
    return b'"data:image;base64,%b"' % pybase64.b64encode(content)
