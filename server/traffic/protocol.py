"""HTTP as uvicorn reads it, with the bounds on a request's head that uvicorn leaves to a proxy in front."""

import asyncio
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import GatewayError, Reason
from server.settings import Settings
from server.telemetry.logs import LOGGER

# Up to here what is written waits for more, until the loop's next turn.
GATHERED_BYTES = 64 * 1024


class GatheringTransport:
    """Writes at once what comes within one turn of the event loop; for the rest it is the transport itself.

    uvicorn writes an answer's head, each part of its body and its end on their own, each by a call into the system.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []
        self._num_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """asyncio's."""
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > GATHERED_BYTES:
            self._flush()

    def close(self) -> None:
        """asyncio's: what was written is sent before."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._gathered:
            data = b"".join(self._gathered)
            self._gathered.clear()
            self._num_bytes = 0
            self._transport.write(data)


class GuardedProtocol(HttpToolsProtocol):
    """Bounds how large a request's head (its first line and headers) is, and how long it may take to come.

    Before a head is whole the app knows nothing of the request, so what is refused here is logged, not counted.
    """

    max_head_bytes: int
    head_timeout_seconds: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first request no longer than for the next."""
        super().connection_made(cast(asyncio.Transport, GatheringTransport(transport, self.loop)))
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait for a head."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what is not yet a whole head; the piece in which it begins, 256 KiB at most, is not counted."""
        was_in_head = self._is_in_head
        if self._is_idle() and self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.head_timeout_seconds, self._refuse, 408, "The request's headers did not arrive in time."
            )
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_head_bytes:
                self._refuse_large()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._end_head()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            self._is_too_large = True
            # The parser stops, and the caller asks for an answer below.
            raise ValueError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The rest of a body whose request was answered before: nothing more is due."""
        self._end_head()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP in the form of all other errors."""
        if self._is_too_large:
            self._refuse_large()
        else:
            self._refuse(400, msg)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_head(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_large(self) -> None:
        self._refuse(431, f"Expected at most {self.max_head_bytes} bytes of first line and headers.")

    def _refuse(self, status: int, message: str) -> None:
        self._end_head()
        LOGGER.info("head_refused", extra={"fields": {"status": status}})
        # The answer to an earlier request of this connection may be on its way.
        if self._is_idle() and not self.transport.is_closing():
            error = GatewayError(status, Reason.INVALID_REQUEST, message)
            body = msgspec.json.encode(error.body())
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            lines = [f"{name}: {value}\r\n".encode() for name, value in (headers | error.headers()).items()]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()


def guarded_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The class with these settings' bounds, as uvicorn takes it."""

    class Protocol(GuardedProtocol):
        max_head_bytes = settings.max_head_bytes
        head_timeout_seconds = settings.head_timeout_seconds

    return Protocol
