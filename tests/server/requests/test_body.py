"""Bodies that are too large, come slowly, or come all at once: raw sockets and the official client see the answer."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
PATIENCE_SECONDS = 60
MIB = 1024 * 1024


async def metric(gateway: httpx.AsyncClient, name: str) -> float:
    """The sum over all labels."""
    text = (await gateway.get("/metrics")).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - by HTTP only
            await asyncio.sleep(0.01)


def send_all_then_read(port: int, data: bytes) -> bytes:
    """As most clients do: a blocking socket that reads nothing before everything is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        # So that not much of it is on its way, and the sender is still sending when it is refused.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(64 * 1024):
            answer += piece
        return answer


@pytest.mark.parametrize(
    ("headers", "size", "status", "code"),
    [
        ("content-length: {size}\r\n", 24 * MIB, 413, "body_too_large"),
        ("transfer-encoding: chunked\r\n", 24 * MIB, 413, "body_too_large"),
        ("content-encoding: gzip\r\ncontent-length: {size}\r\n", 24 * MIB, 415, "unsupported_media_type"),
    ],
    ids=["announced", "not announced", "encoded"],
)
async def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(
    start_gateway: Start, headers: str, size: int, status: int, code: str
) -> None:
    gateway = await start_gateway(max_body_bytes=4 * MIB)
    body = b" " * size
    if "chunked" in headers:
        body = f"{size:x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    data = f"{HEAD}{headers.format(size=size)}\r\n".encode() + body

    answer = await asyncio.to_thread(send_all_then_read, gateway.base_url.port, data)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == code
    assert await metric(gateway, "laid_body_bytes_in_flight") == 0


async def test_the_official_client_raises_the_refusal(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway(max_body_bytes=4 * MIB)

    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none") as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**chat("a" * 24 * MIB))

    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_reading_on_after_a_refusal_has_an_end(start_gateway: Start) -> None:
    gateway = await start_gateway(max_body_bytes=1 * MIB, linger_seconds=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    writer.write(f"{HEAD}content-length: {2 * MIB}\r\n\r\n{{".encode())

    # The whole answer at once, though the rest of the body never comes; then the end.
    answer = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)

    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


async def test_a_small_refused_body_leaves_the_connection_open(start_gateway: Start) -> None:
    gateway = await start_gateway()
    refused = f"{HEAD}content-encoding: gzip\r\ncontent-length: 9\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)

    for _ in range(2):
        writer.write(refused + b"[")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)
        assert head.startswith(b"HTTP/1.1 415 ")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.write(b" " * 8)

    writer.close()
    await writer.wait_closed()


async def test_bodies_wait_for_memory_before_they_are_read(cued_engine: Any, start_gateway: Start, chat: Make) -> None:
    entered, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def answer(request: Any) -> Any:
        entered.release()
        await go_on.wait()
        return await cued_engine.chat(request)

    cued_engine.answer = answer
    # Room for one large body and a small one.
    gateway = await start_gateway(max_body_bytes=1 * MIB, max_bodies_bytes=1 * MIB + 16 * 1024)
    large = json.dumps(chat()) + " " * 900 * 1024
    headers = {"content-type": "application/json"}

    async def post(content: str) -> httpx.Response:
        return await gateway.post(CHAT, content=content, headers=headers)

    first = asyncio.create_task(post(large))
    await asyncio.wait_for(entered.acquire(), 60)
    second = asyncio.create_task(post(large))

    async def is_waiting() -> bool:
        return await metric(gateway, "laid_body_bytes_waiting_requests") == 1

    await until(is_waiting)
    # A small body has room of its own.
    small = asyncio.create_task(post(json.dumps(chat())))
    await asyncio.wait_for(entered.acquire(), 60)
    assert await metric(gateway, "laid_body_bytes_in_flight") <= 1 * MIB + 16 * 1024

    cued_engine.answer = None
    go_on.set()
    assert [response.status_code for response in await asyncio.gather(first, second, small)] == [200] * 3
    assert await metric(gateway, "laid_body_bytes_in_flight") == 0


async def test_many_large_bodies_each_get_an_answer_or_an_honest_refusal(
    cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    go_on = asyncio.Event()

    async def answer(request: Any) -> Any:
        await go_on.wait()
        return await cued_engine.chat(request)

    cued_engine.answer = answer
    gateway = await start_gateway(max_body_bytes=1 * MIB, max_bodies_bytes=4 * MIB, max_queued_bodies=5)
    large = json.dumps(chat()) + " " * 900 * 1024

    async def post() -> httpx.Response:
        return await gateway.post(CHAT, content=large, headers={"content-type": "application/json"})

    posts = [asyncio.create_task(post()) for _ in range(20)]

    async def all_but_the_held_are_refused() -> bool:
        assert await metric(gateway, "laid_body_bytes_in_flight") <= 4 * MIB
        return sum(task.done() for task in posts) == 11

    await until(all_but_the_held_are_refused)
    refused = [task.result() for task in posts if task.done()]
    cued_engine.answer = None
    go_on.set()
    answers = [response for task in posts if (response := await task) not in refused]

    assert [response.status_code for response in answers] == [200] * 9
    for response in refused:
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "memory_full"
        assert response.headers["x-should-retry"] == "true"
        assert int(response.headers["retry-after"]) >= 1
    assert await metric(gateway, "laid_body_bytes_in_flight") == 0


async def test_bodies_without_a_length_never_wait_half_read(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway(max_body_bytes=1 * MIB, max_bodies_bytes=2 * MIB)
    text = json.dumps(chat()).encode() + b" " * 700 * 1024
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    released = asyncio.Event()

    async def post() -> httpx.Response:
        async def content() -> Any:
            yield halves[0]
            await released.wait()
            yield halves[1]

        return await gateway.post(CHAT, content=content(), headers={"content-type": "application/json"})

    # Together, half read, they would hold more than there is; each was given room for the largest before it was read.
    posts = [asyncio.create_task(post()) for _ in range(6)]

    async def others_wait() -> bool:
        return await metric(gateway, "laid_body_bytes_waiting_requests") == 5

    await until(others_wait)
    released.set()

    assert [response.status_code for response in await asyncio.gather(*posts)] == [200] * 6


async def test_who_leaves_while_it_waits_or_sends_leaves_no_trace(cued_engine: Any, start_gateway: Start) -> None:
    gateway = await start_gateway(max_body_bytes=1 * MIB, max_bodies_bytes=1 * MIB + 16 * 1024)
    writers = []
    for _ in range(3):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
        writer.write(f"{HEAD}content-length: {900 * 1024}\r\n\r\n{{".encode())
        writers.append(writer)

    async def two_wait() -> bool:
        return await metric(gateway, "laid_body_bytes_waiting_requests") == 2

    await until(two_wait)
    for writer in writers:
        writer.close()
        await writer.wait_closed()

    async def all_are_gone() -> bool:
        return (
            await metric(gateway, "laid_body_bytes_waiting_requests") == 0
            and await metric(gateway, "laid_body_bytes_in_flight") == 0
        )

    await until(all_are_gone)
    assert cued_engine.bodies == []
