"""One HTTP/1.1 connection to an engine, and the answer that arrives on it.

uvicorn's own parser (httptools) on asyncio's transports, because what a general client does for each request is most of
what a short one costs here; and a body of many pieces goes out as the pieces it is.

ConnectionFailedError    no answer, or not the whole of it
├── UnreachableError         no connection came about: the engine has seen nothing of the request
├── BrokenError              the connection broke, or what came is not HTTP
└── SilentError              nothing came for too long
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

Pieces = Sequence[bytes | bytearray | memoryview]
"""A body's bytes in order; they may not change before the answer is there."""

# A slow reader stops the engine's writing here.
MAX_UNREAD_BYTES = 256 * 1024
# Up to here one write of joined bytes is cheaper than several pieces.
JOINED_BYTES = 64 * 1024


class ConnectionFailedError(Exception):
    """No answer, or not the whole of it."""


class UnreachableError(ConnectionFailedError):
    """No connection came about: the engine has seen nothing of the request."""


class BrokenError(ConnectionFailedError):
    """The connection broke, or what came is not HTTP."""


class SilentError(ConnectionFailedError):
    """Nothing came for too long."""


async def connect(host: str, port: int, *, tls: ssl.SSLContext | None, timeout_seconds: float) -> "Connection":
    """A new connection, with TCP_NODELAY, which is asyncio's default.

    Raises:
        UnreachableError: refused, or not made in time.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, host, port, ssl=tls)
    except OSError as error:  # a timeout and every failure of names and TLS are among them
        raise UnreachableError(str(error) or "no connection in time") from error
    return connection


class Connection(asyncio.Protocol):
    """Carries one exchange after another."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_open = False
        """Until either side has closed it."""
        self._answer: Answer | None = None

    async def ask(
        self, head: bytes, body: Pieces, *, silence_seconds: float, on_end: Callable[["Connection", bool], None]
    ) -> "Answer":
        """Sends a request and waits for the head of its answer; cancelled, it closes the connection.

        Args:
            head: the request line and headers, with the empty line after them.
            body: what follows.
            silence_seconds: how long the engine may send nothing, before the answer and within it.
            on_end: called once the answer is closed, with whether the connection can carry another exchange.

        Raises:
            BrokenError: closed by the engine.
            SilentError: the engine took too long.
        """
        answer = self._answer = Answer(self, silence_seconds, on_end)
        if len(head) + sum(map(len, body)) <= JOINED_BYTES:
            self._transport.write(b"".join((head, *body)))
        else:
            self._transport.writelines((head, *body))
        try:
            await answer.wait_for_head()
        except BaseException:
            answer.close()
            raise
        return answer

    def end_exchange(self) -> bool:
        """Forgets the answer; True if the request was sent to its end, so that another can follow."""
        self._answer = None
        return self.is_open and self._transport.get_write_buffer_size() == 0

    def close(self) -> None:
        """Closes at once; an engine drops what it was doing for it."""
        self.is_open = False
        self._transport.abort()

    def pause_reading(self) -> None:
        """Lets the engine wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Lets the engine go on."""
        if self.is_open:
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's: connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes came."""
        if self._answer is None:
            self.close()  # nobody asked
        else:
            self._answer.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's: closed by either side."""
        self.is_open = False
        if self._answer is not None:
            self._answer.fail(BrokenError(str(error) if error else "closed by the engine"))


class Answer:
    """An engine's answer as it arrives; close it, or leave its `with`, and an unfinished one is cancelled there."""

    def __init__(
        self, connection: Connection, silence_seconds: float, on_end: Callable[[Connection, bool], None]
    ) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        """Names in lower case."""
        self._connection = connection
        self._on_end = on_end
        self._parser = HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._unread_bytes = 0
        self.is_paused = False
        """True while the engine waits for a slow reader here."""
        self._is_head_whole = self._is_whole = self._is_closed = self._keeps_alive = False
        self._failure: ConnectionFailedError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._silence_seconds = silence_seconds
        self._heard_at = self._loop.time()
        self._silence = self._loop.call_later(silence_seconds, self._check_silence)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    async def wait_for_head(self) -> None:
        """Returns when `status` and `headers` are there.

        Raises:
            ConnectionFailedError: they will not be.
        """
        while not self._is_head_whole:
            await self._wait()

    async def next_chunk(self) -> bytes:
        """What came since the last call, or comes next; b"" at the end.

        Raises:
            ConnectionFailedError: there will be no end.
        """
        while not self._chunks:
            if self._is_whole:
                return b""
            await self._wait()
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._unread_bytes = 0
        if self.is_paused:
            self.is_paused = False
            self._heard_at = self._loop.time()
            self._connection.resume_reading()
        return chunk

    async def read(self) -> bytes:
        """All of it.

        Raises:
            ConnectionFailedError: there will be no end.
        """
        chunks = []
        while chunk := await self.next_chunk():
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Gives the connection back; one with an unfinished exchange is closed, which cancels the request there."""
        if self._is_closed:
            return
        self._is_closed = True
        self._silence.cancel()
        self._on_end(self._connection, self._connection.end_exchange() and self._keeps_alive)

    def feed(self, data: bytes) -> None:
        """Takes bytes from the connection."""
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._keeps_alive = False
            self.fail(BrokenError(f"not HTTP: {error}"))
            return
        if self._unread_bytes > MAX_UNREAD_BYTES and not self.is_paused and not self._is_whole:
            self.is_paused = True
            self._connection.pause_reading()
        self._wake()

    def fail(self, failure: ConnectionFailedError) -> None:
        """There will be no more; what has come can still be read."""
        if not self._is_whole and self._failure is None:
            self._failure = failure
        self._wake()

    def on_message_begin(self) -> None:
        """The parser's: an answer begins; what is raised here ends the connection."""
        if self._is_whole:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's: a header, or after the body a trailer, which nobody needs."""
        if not self._is_head_whole:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The parser's: status and headers are there."""
        self.status = self._parser.get_status_code()
        self._is_head_whole = True

    def on_body(self, data: bytes) -> None:
        """The parser's: bytes of the body, without their framing."""
        self._chunks.append(data)
        self._unread_bytes += len(data)

    def on_message_complete(self) -> None:
        """The parser's: the end."""
        self._is_whole = True
        self._keeps_alive = self._parser.should_keep_alive()

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_silence(self) -> None:
        # One timer an answer, checked when it runs out, costs less than one for each wait.
        now = self._loop.time()
        if self.is_paused:
            self._heard_at = now  # it is the client who is slow
        if now - self._heard_at < self._silence_seconds:
            self._silence = self._loop.call_at(self._heard_at + self._silence_seconds, self._check_silence)
        else:
            self.fail(SilentError(f"nothing came for {self._silence_seconds:g} s"))
