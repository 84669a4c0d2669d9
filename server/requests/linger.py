"""Lets a client read an answer that came before it had sent all of its body."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The rest of a smaller body is read and dropped by the server itself, and the connection stays.
SMALL_BODY_BYTES = 64 * 1024


class Linger:
    """Plain ASGI middleware: after an early answer it reads on, dropping what comes, before the connection is closed.

    To close a connection on which data still arrives is to reset it, and a reset takes from the client what it has not
    read yet: the 413 that says why. Most clients send all of a body before they read anything.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        """`seconds` is how long it reads on at most."""
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http" or not _may_be_large(scope["headers"]):
            await self._app(scope, receive, send)
            return
        has_ended = False

        async def receive_noting() -> Message:
            nonlocal has_ended
            message = await receive()
            has_ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def send_lingering(message: Message) -> None:
            if has_ended:
                await send(message)
            elif message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
                await send(message)
            elif message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        while not has_ended:
                            await receive_noting()
                await send({"type": "http.response.body"})

        await self._app(scope, receive_noting, send_lingering)


def _may_be_large(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value) > SMALL_BODY_BYTES):
            return True
    return False
