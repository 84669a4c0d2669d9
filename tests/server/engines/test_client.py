"""The engine's HTTP client against a server that does byte for byte what a test says, on both event loops."""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import uvloop
from pydantic import HttpUrl

from server.engines.client import Client
from server.engines.connection import MAX_UNREAD_BYTES, Answer, BrokenError, Connection, SilentError, UnreachableError

PATIENCE_SECONDS = 60
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """The command runs on uvloop, whose transports differ from asyncio's."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class Engine:
    """Answers on each connection with `serve`, by default with what it is sent, and notes what it was asked."""

    def __init__(self, serve: Serve | None = None) -> None:
        self._serve = serve or self._echo
        self._connections: list[asyncio.Task[None] | None] = []
        self.heads: list[bytes] = []

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    @contextlib.asynccontextmanager
    async def client(self, path: str = "") -> AsyncIterator[Client]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client(HttpUrl(f"http://127.0.0.1:{port}{path}"), connect_timeout_seconds=PATIENCE_SECONDS)
        async with server:
            try:
                yield client
            finally:
                client.close()
                await asyncio.gather(*filter(None, self._connections))

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        """One request's body."""
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        return await reader.readexactly(int(self.heads[-1].split(b"content-length: ")[1].split(b"\r\n")[0]))

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(whole(await self.read(reader)))
            await writer.drain()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()


async def post(client: Client, *pieces: bytes | memoryview, silence_seconds: float = PATIENCE_SECONDS) -> Answer:
    return await client.ask("POST", "/x", headers={"a": "b"}, body=pieces, silence_seconds=silence_seconds)


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("size", [0, 1, 1000, 65_000, 70_000, 30_000_000])
def test_a_body_of_pieces_arrives_whole_and_in_order(run: Run, size: int) -> None:
    async def main() -> None:
        source = memoryview((bytes(range(251)) * (size // 251 + 1))[:size])
        cuts = [0, size // 7, size // 3, size]
        async with Engine().client() as client:
            with await post(client, *(source[a:b] for a, b in itertools.pairwise(cuts))) as answer:
                assert await answer.read() == source

    run(main())


def test_a_connection_is_used_again_and_has_no_delay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    delays = []
    made = Connection.connection_made

    def connection_made(connection: Connection, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        delays.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)

    async def main() -> None:
        engine = Engine()
        async with engine.client() as client:
            for _ in range(3):
                with await post(client, b"a") as answer:
                    assert (answer.status, await answer.read()) == (200, b"a")
        assert engine.num_connections == 1

    run(main())
    assert delays == [1]


def test_a_kept_connection_that_the_engine_closed_is_replaced_unseen(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read(reader)
            if engine.num_connections == 1:
                writer.write(whole(b"first"))
                # The next request is read before the end, so that it meets a connection that looks open.
                await engine.read(reader)
            else:
                writer.write(whole(b"second"))

        engine = Engine(serve)
        async with engine.client() as client:
            for expected in (b"first", b"second"):
                with await post(client) as answer:
                    assert await answer.read() == expected
        assert len(engine.heads) == 3

    run(main())


def test_a_new_connection_that_breaks_is_not_asked_again(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await engine.read(reader)

        engine = Engine(serve)
        async with engine.client() as client:
            with pytest.raises(BrokenError):
                await post(client)
        assert engine.num_connections == 1

    run(main())


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhal\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhal\r\nzz",
        # Where an end is not marked, a break is not told from it.
        b"HTTP/1.1 200 OK\r\n\r\nhal",
    ],
    ids=["short", "no last chunk", "not HTTP", "no length"],
)
def test_an_answer_that_breaks_off_gives_what_came_and_then_fails(run: Run, sent: bytes) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read(reader)
            writer.write(sent)

        engine = Engine(serve)
        async with engine.client() as client:
            with await post(client) as answer:
                assert await answer.next_chunk() == b"hal"
                with pytest.raises(BrokenError):
                    await answer.next_chunk()

    run(main())


def test_an_answer_before_the_end_of_the_request_ends_the_connection(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            engine.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(whole(b"no"))
            await over.wait()

        over = asyncio.Event()
        engine = Engine(serve)
        async with engine.client() as client:
            for _ in range(2):
                with await post(client, bytes(30_000_000)) as answer:
                    assert await answer.read() == b"no"
            over.set()
        assert engine.num_connections == 2

    run(main())


def test_closing_an_unfinished_answer_is_seen_by_the_engine(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal")
            assert await reader.read() == b""
            is_seen.set()

        is_seen = asyncio.Event()
        engine = Engine(serve)
        async with engine.client() as client:
            with await post(client) as answer:
                await answer.next_chunk()
            await asyncio.wait_for(is_seen.wait(), PATIENCE_SECONDS)

    run(main())


def test_a_slow_reader_stops_the_engines_writing(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read(reader)
            writer.write(whole(bytes(32_000_000)))
            await writer.drain()

        engine = Engine(serve)
        async with engine.client() as client:
            with await post(client) as answer:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not answer.is_paused:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)
                first = await answer.next_chunk()
                # One read of a socket more than the mark, at most.
                assert MAX_UNREAD_BYTES < len(first) <= 3 * MAX_UNREAD_BYTES
                assert len(first) + len(await answer.read()) == 32_000_000

    run(main())


def test_silence_has_an_end(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await engine.read(reader)
            await reader.read()

        engine = Engine(serve)
        async with engine.client() as client:
            with pytest.raises(SilentError, match=r"0\.05 s"):
                await post(client, silence_seconds=0.05)

    run(main())


def test_nobody_there_is_unreachable(run: Run, free_port: int) -> None:
    async def main() -> None:
        with pytest.raises(UnreachableError):
            await post(Client(HttpUrl(f"http://127.0.0.1:{free_port}"), connect_timeout_seconds=PATIENCE_SECONDS))

    run(main())


def test_a_second_answer_to_one_request_is_not_taken_for_the_next_ones(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await engine.read(reader)
            writer.write(whole(b"mine") + whole(b"not mine"))
            await engine.read(reader)

        engine = Engine(serve)
        async with engine.client() as client:
            for _ in range(2):
                with await post(client) as answer:
                    assert await answer.read() == b"mine"

    run(main())


def test_the_urls_path_goes_before_each_requests(run: Run) -> None:
    async def main() -> None:
        engine = Engine()
        async with engine.client("/engines/1/") as client:
            with await post(client, b"a") as answer:
                await answer.read()
        request, host, *rest = engine.heads[0].decode().split("\r\n")
        assert request == "POST /engines/1/x HTTP/1.1"
        assert host.startswith("host: 127.0.0.1:")
        assert rest == ["a: b", "content-length: 1", "", ""]

    run(main())


async def test_a_header_cannot_add_another(free_port: int) -> None:
    client = Client(HttpUrl(f"http://127.0.0.1:{free_port}"), connect_timeout_seconds=PATIENCE_SECONDS)
    with pytest.raises(ValueError, match="line break"):
        await client.ask("GET", "/", headers={"a": "b\r\nc: d"}, silence_seconds=1)
