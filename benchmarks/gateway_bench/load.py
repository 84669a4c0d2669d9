"""Streams at full speed from many connections, in a process of its own.

    python -m gateway_bench.load PORT CONNECTIONS SECONDS BODY_FILE [HEADER: VALUE]

Prints how many streams were answered in a second, and how many in all, those of the warm-up too.
"""

import asyncio
import sys
import time
from pathlib import Path

import uvloop

END = b"0\r\n\r\n"


class Stream(asyncio.Protocol):
    """Asks again as soon as the last answer ended."""

    def __init__(self, request: bytes, tally: list[int], failed: asyncio.Future[None]) -> None:
        self.request = request
        self.tally = tally
        self.failed = failed
        self.is_first = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.is_first:
            self.is_first = False
            if not data.startswith(b"HTTP/1.1 200"):
                self._fail(RuntimeError(data[:500].decode("latin-1")))
                return
        if data.endswith(END):
            self.tally[0] += 1
            self.is_first = True
            self.transport.write(self.request)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)


async def main() -> None:
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    body = Path(sys.argv[4]).read_bytes()  # noqa: ASYNC240 - before anything runs
    extra = "".join(f"{header}\r\n" for header in sys.argv[5:])
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    tally, failed = [0], loop.create_future()
    for _ in range(connections):
        await loop.create_connection(lambda: Stream(head.encode() + body, tally, failed), "127.0.0.1", port)
    await asyncio.wait([failed], timeout=min(1.0, seconds / 2))
    begun, before = time.perf_counter(), tally[0]
    await asyncio.wait([failed], timeout=seconds)
    if failed.done():
        failed.result()
    print((tally[0] - before) / (time.perf_counter() - begun), tally[0])


if __name__ == "__main__":
    uvloop.run(main())
