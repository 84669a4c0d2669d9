"""Reads a request's body under limits on size, time and memory."""

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.requests import Request

from server.errors import GatewayError, Reason
from server.settings import Settings
from server.traffic.lanes import Lanes, Room

Headers = Mapping[bytes, bytes]
"""Names in lower case, as ASGI has them."""


class Body(msgspec.Struct, frozen=True):
    """A request's whole body, and the memory that it may take; whoever has it gives that back."""

    content: bytearray
    """Nobody changes it: slices of it go to the engine."""
    room: Room


async def read_body(request: Request, settings: Settings, memory: Lanes) -> Body:
    """The whole body, none of which is read before there is memory for it.

    Raises:
        GatewayError: 413 at the first byte over the limit, or before any if the header announces it; 503 if memory is
            full; 408 if it does not arrive in time; 415 if it is not plain JSON; 499 if the client leaves.
    """
    headers = dict(request.scope["headers"])
    _check_type(headers)
    announced = _content_length(headers)
    room = await memory.take(_announced_bytes(announced, settings.max_body_bytes))
    try:
        content = await _read(request, settings, announced or 0)
    except BaseException:
        room.release()
        raise
    room.shrink(len(content))
    return Body(content, room)


def _announced_bytes(announced: int | None, limit: int) -> int:
    """The body's size; without a Content-Length as much as a body may have.

    Memory for such a body could instead be taken as it comes, but then many of them could each hold some and wait for
    more, all for ever.
    """
    if announced is None:
        return limit
    if announced > limit:
        raise _too_large(f"{announced} bytes", limit)
    return announced


def _content_length(headers: Headers) -> int | None:
    text = headers.get(b"content-length", b"")
    return int(text) if text.isdigit() else None


async def _read(request: Request, settings: Settings, announced: int) -> bytearray:
    limit = settings.max_body_bytes
    # Made at its size and filled, the body is in memory once; the system gives the memory as it is filled.
    content = bytearray(announced)
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            is_whole = False
            while not is_whole:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise GatewayError(499, Reason.CLIENT_LEFT, "The client closed the connection.")
                chunk = message.get("body", b"")
                if size + len(chunk) > limit:
                    raise _too_large(f"more than {limit} bytes", limit)
                content[size : size + len(chunk)] = chunk
                size += len(chunk)
                is_whole = not message.get("more_body", False)
    except TimeoutError:
        raise GatewayError(
            408, Reason.BODY_TIMEOUT, f"The body did not arrive within {settings.body_timeout_seconds:g} s."
        ) from None
    return content


def _check_type(headers: Headers) -> None:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if kind != b"application/json" or encoding != b"identity":
        raise GatewayError(
            415,
            Reason.UNSUPPORTED_MEDIA_TYPE,
            "Expected a body with Content-Type: application/json and no Content-Encoding.",
        )


def _too_large(size: str, limit: int) -> GatewayError:
    return GatewayError(413, Reason.BODY_TOO_LARGE, f"The body has {size}, expected at most {limit}.")
