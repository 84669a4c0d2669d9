"""Several engines behind one gateway, all on real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

Start = Callable[..., Awaitable[httpx.AsyncClient]]
StartEngine = Callable[..., Awaitable[Any]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
PATIENCE_SECONDS = 60
# No look at an engine but the first: what happens then is the requests' doing.
NO_LOOKS = {"health_interval_seconds": 3600.0}
LOOKS = {"health_interval_seconds": 0.01}


@pytest.fixture
async def engines(start_cued_engine: StartEngine) -> list[Any]:
    return [await start_cued_engine() for _ in range(3)]


def urls(engines: list[Any]) -> list[str]:
    return [engine.url for engine in engines]


def num_asked(engines: list[Any]) -> list[int]:
    return [len(engine.bodies) for engine in engines]


async def metric(gateway: httpx.AsyncClient, name: str, **labels: str) -> float:
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted({"model": "tiny", **labels}.items()))
    lines = (await gateway.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}{{{wanted}}}")]
    return float(line.rsplit(" ", 1)[1])


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def refusing(status: int) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return JSONResponse({"error": {"message": "full, see http://10.1.2.3"}}, status_code=status)

    return answer


async def home_of(gateway: httpx.AsyncClient, engines: list[Any], body: dict[str, Any]) -> Any:
    """The engine to which a conversation belongs."""
    before = num_asked(engines)
    assert (await gateway.post(CHAT, json=body)).status_code == 200
    (home,) = [engine for engine, num in zip(engines, before, strict=True) if len(engine.bodies) > num]
    return home


async def test_a_conversation_stays_and_conversations_spread(
    engines: list[Any], start_gateway: Start, chat: Make
) -> None:
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)
    home = await home_of(gateway, engines, chat("hello"))
    grown = chat("hello")
    for turn in range(3):
        grown["messages"] += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": f"and {turn}?"}]
        assert await home_of(gateway, engines, grown) is home

    for i in range(100):
        await gateway.post(CHAT, json=chat(f"conversation {i}"))

    assert all(num > 4 for num in num_asked(engines))


async def test_the_same_images_go_to_the_same_engine(
    engines: list[Any], start_gateway: Start, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)
    images = [image_part(32, 32, seed=i) for i in range(2)]

    homes = [
        await home_of(gateway, engines, chat([*images, {"type": "text", "text": f"question {i}"}])) for i in range(8)
    ]

    assert homes == homes[:1] * 8


async def test_an_engine_that_is_gone_is_replaced_before_the_first_byte(
    engines: list[Any], start_gateway: Start, chat: Make
) -> None:
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)
    home = await home_of(gateway, engines, chat("hello"))
    await home.stop()
    left = [engine for engine in engines if engine is not home]

    second = await home_of(gateway, left, chat("hello"))

    assert await metric(gateway, "laid_engine_failovers_total") == 1
    # Now it is known to be gone, and the conversation has a new home.
    assert await home_of(gateway, left, chat("hello", stream=False)) is second
    assert await metric(gateway, "laid_engine_failovers_total") == 1
    assert await metric(gateway, "laid_engine_up", engine=str(engines.index(home))) == 0
    assert (await gateway.get("/ready")).status_code == 200


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("status", [502, 503])
async def test_an_engine_that_is_not_ready_is_replaced(
    engines: list[Any], start_gateway: Start, chat: Make, status: int, stream: bool
) -> None:
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)
    home = await home_of(gateway, engines, chat("hello"))
    home.answer = refusing(status)

    assert (await gateway.post(CHAT, json=chat("hello", stream=stream))).status_code == 200

    assert len(home.bodies) == 2
    assert sum(num_asked(engines)) == 3


async def test_an_engine_that_ends_is_replaced(engines: list[Any], start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)
    home = await home_of(gateway, engines, chat("hello"))

    async def ending(_: Request) -> Response:
        # vLLM 0.32 with --shutdown-timeout, after SIGTERM.
        message = "cannot schedule new futures after shutdown"
        error = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
        return JSONResponse({"error": error}, 500)

    home.answer = ending

    assert (await gateway.post(CHAT, json=chat("hello"))).status_code == 200

    assert len(home.bodies) == 2
    assert sum(num_asked(engines)) == 3


async def test_a_request_goes_round_two_engines_at_most(engines: list[Any], start_gateway: Start, chat: Make) -> None:
    for engine in engines:
        engine.answer = refusing(503)
    gateway = await start_gateway(upstream=urls(engines), retry_after_seconds=7, **NO_LOOKS)

    response = await gateway.post(CHAT, json=chat())

    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert "10.1.2.3" not in response.text
    assert sorted(num_asked(engines)) == [0, 1, 1]


@pytest.mark.parametrize("status", [400, 500])
async def test_what_another_engine_would_answer_too_is_not_asked_again(
    engines: list[Any], start_gateway: Start, chat: Make, status: int
) -> None:
    for engine in engines:
        engine.answer = refusing(status)
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)

    assert (await gateway.post(CHAT, json=chat())).status_code == status

    assert sum(num_asked(engines)) == 1


async def test_nothing_is_generated_again_after_a_byte(engines: list[Any], start_gateway: Start, chat: Make) -> None:
    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b'data: {"choices":[]}\n\n'
            raise RuntimeError("on cue")

        return StreamingResponse(body(), media_type="text/event-stream")

    for engine in engines:
        engine.answer = answer
    gateway = await start_gateway(upstream=urls(engines), **NO_LOOKS)

    response = await gateway.post(CHAT, json=chat(stream=True))

    assert json.loads(response.text.split("\n\n")[-2][6:])["error"]["code"] == "engine_failed"
    assert sum(num_asked(engines)) == 1


async def test_a_busy_engine_sends_its_conversation_on(engines: list[Any], start_gateway: Start, chat: Make) -> None:
    arrivals: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Event()

    async def answer(_: Request) -> Response:
        arrivals.put_nowait(None)
        await go_on.wait()
        return JSONResponse({"choices": []})

    for engine in engines:
        engine.answer = answer
    gateway = await start_gateway(upstream=urls(engines), engine_spill_requests=1, engine_load_factor=1.0, **NO_LOOKS)
    posts = []
    for _ in range(6):
        posts.append(asyncio.create_task(gateway.post(CHAT, json=chat("the same"))))
        await asyncio.wait_for(arrivals.get(), PATIENCE_SECONDS)
    go_on.set()

    assert [(await post).status_code for post in posts] == [200] * 6
    assert num_asked(engines) == [2, 2, 2]


async def test_an_engine_that_serves_something_else_stays_out(
    engines: list[Any], start_gateway: Start, chat: Make, caplog: pytest.LogCaptureFixture
) -> None:
    odd = engines[1]
    odd.context_length = 4096
    gateway = await start_gateway(upstream=urls(engines), **LOOKS)

    for i in range(30):
        await gateway.post(CHAT, json=chat(f"conversation {i}"))

    assert odd.bodies == []
    (record,) = [record for record in caplog.records if record.message == "engine_down"]
    assert record.fields == {  # type: ignore[attr-defined]
        "engine": "1",
        "trouble": "it serves tiny with 4096 tokens; expected tiny with 2048 tokens",
    }

    odd.context_length = 2048

    async def is_up() -> bool:
        return await metric(gateway, "laid_engine_up", engine="1") == 1

    await eventually(is_up)


async def test_engines_that_are_not_there_yet_are_taken_in_when_they_come(
    start_gateway: Start, start_cued_engine: StartEngine, chat: Make, free_port: int
) -> None:
    """As in a cluster that scales its engines: a name that does not resolve, an address where nobody listens."""
    upstream = ["http://engine-1.invalid:8001", f"http://127.0.0.1:{free_port}"]
    gateway = await start_gateway(upstream=upstream, **LOOKS)
    assert (await gateway.get("/health")).status_code == 200
    assert (await gateway.get("/ready")).status_code == 503
    assert (await gateway.post(CHAT, json=chat())).json()["error"]["code"] == "engine_unavailable"

    await start_cued_engine(port=free_port)

    async def is_ready() -> bool:
        return (await gateway.get("/ready")).status_code == 200

    await eventually(is_ready)
    assert (await gateway.post(CHAT, json=chat())).status_code == 200
    assert [await metric(gateway, "laid_engine_up", engine=name) for name in "01"] == [0, 1]


async def test_ready_while_any_engine_is(engines: list[Any], start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway(upstream=urls(engines), health_fall=1, **LOOKS)

    async def num_up() -> float:
        return sum([await metric(gateway, "laid_engine_up", engine=str(i)) for i in range(3)])

    for down, engine in enumerate(engines, 1):
        assert (await gateway.get("/ready")).status_code == 200
        engine.healthy = False

        async def is_seen(expected: int = 3 - down) -> bool:
            return await num_up() == expected

        await eventually(is_seen)
    assert (await gateway.get("/ready")).status_code == 503
    response = await gateway.post(CHAT, json=chat())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")

    engines[0].healthy = True

    async def is_ready() -> bool:
        return (await gateway.get("/ready")).status_code == 200

    await eventually(is_ready)
    assert (await gateway.post(CHAT, json=chat())).status_code == 200
