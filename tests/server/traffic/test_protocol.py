"""Request heads that are too large, too slow, or no HTTP at all, from a raw socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from server.traffic.protocol import GATHERED_BYTES, GatheringTransport

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n"
PATIENCE_SECONDS = 60


async def exchange(gateway: httpx.AsyncClient, *pieces: bytes) -> bytes:
    """What the gateway answers to these bytes until it closes the connection, which every test here waits for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    for piece in pieces:
        writer.write(piece)
        # Every piece is a read of its own.
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
    writer.close()
    await writer.wait_closed()
    return answer


def assert_refused(answer: bytes, status: int, words: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in head
    assert b"x-should-retry: false" in head
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n\r\n",
        HEALTH + b"x-a: " + b"a" * 2000 + b"\r\n\r\n",
        HEALTH + b"".join(b"x-%d: a\r\n" % i for i in range(300)) + b"\r\n",
    ],
    ids=["path", "one header", "many headers"],
)
async def test_a_head_that_is_too_large_is_431(start_gateway: Start, head: bytes) -> None:
    gateway = await start_gateway(max_head_bytes=1000)

    assert_refused(await exchange(gateway, head), 431, "at most 1000 bytes")
    assert (await gateway.get("/health", headers={"x-a": "a" * 500})).status_code == 200


async def test_a_head_without_an_end_is_not_read_on(start_gateway: Start, caplog: pytest.LogCaptureFixture) -> None:
    gateway = await start_gateway(max_head_bytes=1000)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    writer.write(HEALTH)

    with caplog.at_level("INFO", logger="laid.server"):
        await flood(reader, writer, b"x-flood: " + b"a" * 100 + b"\r\n")

    assert [record.fields for record in caplog.records if record.message == "head_refused"] == [{"status": 431}]


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes) -> bytes:
    """Sends the piece for ever; the connection's end is what it waits for, with or without a reset."""

    async def send() -> None:
        while True:
            writer.write(piece)
            await writer.drain()

    sending = asyncio.create_task(send())
    (answer,) = await asyncio.gather(asyncio.wait_for(reader.read(), PATIENCE_SECONDS), return_exceptions=True)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    writer.close()
    if isinstance(answer, ConnectionError):
        return b""
    assert isinstance(answer, bytes)
    return answer


@pytest.mark.parametrize("head", [HEALTH, b"GET ", b"\r\n"], ids=["no end", "no line", "blank line"])
async def test_a_head_that_does_not_end_in_time_is_408(start_gateway: Start, head: bytes) -> None:
    gateway = await start_gateway(head_timeout_seconds=0.1)

    assert_refused(await exchange(gateway, head), 408, "did not arrive in time")


async def test_the_time_for_a_head_is_not_the_time_for_its_body_or_answer(
    cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    is_over = asyncio.Event()

    async def answer(request: Any) -> Any:
        await is_over.wait()
        cued_engine.answer = None
        return await cued_engine.chat(request)

    cued_engine.answer = answer
    gateway = await start_gateway(head_timeout_seconds=0.2)
    body = json.dumps(chat()).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:1])
    # Another connection, opened later, is refused for its head: so much time has passed for this one.
    await exchange(gateway, b"GET ")
    writer.write(body[1:])
    await exchange(gateway, b"GET ")
    is_over.set()

    assert (await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


async def test_what_is_no_http_is_400(start_gateway: Start) -> None:
    gateway = await start_gateway()

    assert_refused(await exchange(gateway, b"HELLO\r\n\r\n"), 400, "Invalid HTTP request")


async def test_a_head_that_is_too_large_behind_a_running_request_ends_both(
    cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    entered = asyncio.Event()

    async def answer(request: Any) -> Any:
        entered.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return None

    cued_engine.answer = answer
    gateway = await start_gateway(max_head_bytes=1000)
    body = json.dumps(chat()).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.wait_for(entered.wait(), PATIENCE_SECONDS)

    # No answer can be given out of turn.
    assert await flood(reader, writer, b"GET /" + b"a" * 100) == b""
    assert (await gateway.get("/health")).status_code == 200


class Recorder(asyncio.Transport):
    """Notes each write as the system would get it."""

    def __init__(self) -> None:
        super().__init__({"peername": "x"})
        self.calls: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append(b"closed")


async def test_what_is_written_in_one_turn_of_the_loop_goes_out_at_once() -> None:
    recorder = Recorder()
    transport = GatheringTransport(recorder, asyncio.get_running_loop())

    transport.write(b"head")
    transport.write(b"body")
    assert recorder.calls == []
    await asyncio.sleep(0)
    transport.write(b"more")
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert recorder.calls == [b"headbody", b"more"]
    assert transport.get_extra_info("peername") == "x"


async def test_what_is_large_is_not_kept_and_a_close_loses_nothing() -> None:
    recorder = Recorder()
    transport = GatheringTransport(recorder, asyncio.get_running_loop())

    transport.write(b"a")
    transport.write(b"b" * GATHERED_BYTES)
    transport.write(b"c")
    transport.close()
    await asyncio.sleep(0)

    assert recorder.calls == [b"a" + b"b" * GATHERED_BYTES, b"c", b"closed"]
