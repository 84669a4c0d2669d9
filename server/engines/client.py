"""An HTTP client for one engine: connections kept and used again, no redirects, no proxies from the environment."""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping

from pydantic import HttpUrl

from server.engines.connection import Answer, BrokenError, Connection, Pieces, connect

# vLLM closes idle connections after 5 s; a pool that drops them sooner seldom meets one that is being closed.
KEEPALIVE_SECONDS = 4.0
MAX_IDLE = 256


class Client:
    """Connections to one engine."""

    def __init__(self, url: HttpUrl, *, connect_timeout_seconds: float) -> None:
        """`url` may have a path, which goes before every request's."""
        assert url.host is not None and url.port is not None  # noqa: S101, PT018 - of every HttpUrl
        self._host, self._port = url.host.strip("[]"), url.port
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._prefix = (url.path or "").rstrip("/")
        self._host_header = f"{url.host}:{url.port}"
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._is_closed = False
        self.num_exchanges = 0
        """Requests being made or answered."""

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], body: Pieces = (), silence_seconds: float
    ) -> Answer:
        """Sends a request and waits for the head of its answer.

        A connection that was kept may have been closed by the engine just now; then a new one is tried, once.

        Raises:
            UnreachableError: no new connection.
            BrokenError: a new connection was closed before an answer.
            SilentError: nothing came in time.
        """
        head = self._head(method, path, headers, sum(map(len, body)))
        if (kept := self._take_idle()) is not None:
            with contextlib.suppress(BrokenError):
                return await self._exchange(kept, head, body, silence_seconds)
        return await self._exchange(await self._connect(), head, body, silence_seconds)

    async def _connect(self) -> Connection:
        self.num_exchanges += 1
        try:
            return await connect(self._host, self._port, tls=self._tls, timeout_seconds=self._connect_timeout_seconds)
        finally:
            self.num_exchanges -= 1

    async def _exchange(self, connection: Connection, head: bytes, body: Pieces, silence_seconds: float) -> Answer:
        self.num_exchanges += 1
        return await connection.ask(head, body, silence_seconds=silence_seconds, on_end=self._end_exchange)

    def close(self) -> None:
        """Closes the idle connections now and each other one when its exchange ends."""
        self._is_closed = True
        while (connection := self._take_idle()) is not None:
            connection.close()

    def _head(self, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError(f"a header with a line break: {headers}")
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._host_header}\r\n{lines}"
        return f"{head}content-length: {length}\r\n\r\n".encode("latin-1")

    def _end_exchange(self, connection: Connection, is_reusable: bool) -> None:
        self.num_exchanges -= 1
        if not is_reusable or self._is_closed or len(self._idle) >= MAX_IDLE:
            connection.close()
        else:
            self._idle[connection] = asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self._drop, connection)

    def _drop(self, connection: Connection) -> None:
        self._idle.pop(connection)
        connection.close()

    def _take_idle(self) -> Connection | None:
        """The one used last, which is the least likely to have been closed."""
        while self._idle:
            connection, expiry = self._idle.popitem()
            expiry.cancel()
            if connection.is_open:
                return connection
        return None
