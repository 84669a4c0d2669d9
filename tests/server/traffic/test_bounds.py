"""The order in which prompts reach the engine, which is held back by events: nothing here depends on time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
# 1,208 tokens, more than half of the window of 2,048: the class of the longest.
LONG = "hello " * 300
# The lanes own 128 + 512 + 1024 + 2048 tokens, and share the rest.
NO_SHARED_ROOM = 128 + 512 + 1024 + 2048


async def sample(gateway: httpx.AsyncClient, name: str, lane: int) -> float:
    text = (await gateway.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith(f'{name}{{lane="{lane}",model="tiny"}}')]
    return float(line.rsplit(" ", 1)[1])


async def until_waiting(gateway: httpx.AsyncClient, requests: int) -> None:
    async with asyncio.timeout(60):
        while await sample(gateway, "laid_prefill_tokens_waiting_requests", 2048) != requests:  # noqa: ASYNC110 - HTTP
            await asyncio.sleep(0.01)


@pytest.fixture
def hold(cued_engine: Any) -> tuple[asyncio.Semaphore, asyncio.Event]:
    """Long prompts enter the engine and stay in prefill until the event."""
    entered, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def answer(_: Request) -> Response:
        if LONG.encode() in cued_engine.bodies[-1]:
            entered.release()
            await go_on.wait()
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return JSONResponse({"id": "chatcmpl-1", "model": "tiny", "choices": [choice]})

    cued_engine.answer = answer
    return entered, go_on


async def test_a_short_prompt_passes_a_long_one_that_holds_its_lane(
    hold: Any, start_gateway: Start, chat: Make
) -> None:
    entered, go_on = hold
    gateway = await start_gateway(max_prefill_tokens=NO_SHARED_ROOM)
    first = asyncio.create_task(gateway.post(CHAT, json=chat(LONG)))
    await asyncio.wait_for(entered.acquire(), 60)
    second = asyncio.create_task(gateway.post(CHAT, json=chat(LONG)))
    await until_waiting(gateway, 1)

    short = await gateway.post(CHAT, json=chat("hello"))

    assert short.status_code == 200
    assert not first.done()
    assert await sample(gateway, "laid_prefill_tokens_in_flight", 2048) > 1024
    go_on.set()
    assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert await sample(gateway, "laid_prefill_tokens_in_flight", 2048) == 0


async def test_the_first_event_of_a_stream_ends_its_prefill(cued_engine: Any, start_gateway: Start, chat: Make) -> None:
    is_over = asyncio.Event()

    async def answer(_: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
            await is_over.wait()
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    cued_engine.answer = answer
    gateway = await start_gateway(max_prefill_tokens=NO_SHARED_ROOM)

    async with gateway.stream("POST", CHAT, json=chat(LONG, stream=True)) as first:
        lines = first.aiter_lines()
        await anext(lines)
        # Its answer goes on, and the next long prompt has its room.
        async with gateway.stream("POST", CHAT, json=chat(LONG, stream=True)) as second:
            assert '"content":"a"' in await anext(second.aiter_lines())
            assert await sample(gateway, "laid_prefill_tokens_in_flight", 2048) == 0
            is_over.set()


async def test_a_full_queue_refuses_and_who_leaves_it_leaves_no_trace(
    hold: Any, cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    entered, go_on = hold
    gateway = await start_gateway(max_prefill_tokens=NO_SHARED_ROOM, max_queued=1)
    first = asyncio.create_task(gateway.post(CHAT, json=chat(LONG)))
    await asyncio.wait_for(entered.acquire(), 60)
    second = asyncio.create_task(gateway.post(CHAT, json=chat(LONG)))
    await until_waiting(gateway, 1)

    refused = await gateway.post(CHAT, json=chat(LONG))

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.headers["x-should-retry"] == "true"
    assert int(refused.headers["retry-after"]) >= 1
    second.cancel()
    await until_waiting(gateway, 0)
    go_on.set()
    assert (await first).status_code == 200
    assert len(cued_engine.bodies) == 1


def test_bounds_too_small_for_one_of_the_largest_are_refused_by_name(make_settings: Make) -> None:
    from server.gateway import make_gateway

    for setting in ("max_prefill_tokens", "max_bodies_bytes"):
        with pytest.raises(ValueError, match=f"{setting}: expected at least"):
            make_gateway(make_settings(**{setting: 1000}))
