"""Limits of a key, at the gateway's routes, counted in memory and in a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
KeyFile = Callable[..., Path]
CHAT = "/v1/chat/completions"
ALICE = {"authorization": "Bearer laid-alice"}
# A busy machine's Redis takes its time.
PATIENCE = {"limits_timeout_seconds": 60.0}


@pytest.fixture(params=["memory", "redis"])
def storage(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("redis").url)


def assert_refused(response: httpx.Response, words: str, *, can_retry: bool = True) -> None:
    assert response.status_code == 429
    error = response.json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert words in error["message"]
    assert response.headers["x-should-retry"] == str(can_retry).lower()
    assert ("retry-after" in response.headers) == can_retry
    if can_retry:
        seconds, milliseconds = int(response.headers["retry-after"]), int(response.headers["retry-after-ms"])
        # Within the two minutes that a sliding window looks back on, and the same in both.
        assert 0 < milliseconds <= 120_000
        assert seconds * 1000 - 1000 < milliseconds <= seconds * 1000


async def test_requests_a_minute(start_gateway: Start, chat: Make, key_file: KeyFile, storage: str) -> None:
    gateway = await start_gateway(keys_file=key_file(requests_per_minute=2), limits_storage=storage, **PATIENCE)

    async def post(**changes: Any) -> httpx.Response:
        return await gateway.post(CHAT, json=chat(**changes), headers=ALICE)

    answers = [await post(), await post(model="other"), await post(), await post()]

    assert [answer.status_code for answer in answers] == [200, 404, 429, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
    assert all(answer.headers["x-ratelimit-reset-requests"].endswith("s") for answer in answers)
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    assert_refused(answers[2], "2 requests a minute, and this request takes 1: 0 are left now")
    # What does no work is not counted.
    assert (await gateway.get("/v1/models", headers=ALICE)).status_code == 200
    text = (await gateway.get("/metrics")).text
    assert 'laid_rate_limited_total{limit="requests",model="tiny"} 2.0' in text


async def test_tokens_and_images_a_minute(
    cued_engine: Any, start_gateway: Start, chat: Make, image_part: Make, key_file: KeyFile, storage: str
) -> None:
    # A text takes 11 tokens; an image of 32x32 takes 6 more.
    limits = {"tokens_per_minute": 60, "images_per_minute": 3}
    gateway = await start_gateway(keys_file=key_file(**limits), limits_storage=storage, **PATIENCE)

    async def post(num_images: int) -> httpx.Response:
        content = [{"type": "text", "text": "hello"}, *([image_part(32, 32)] * num_images)]
        return await gateway.post(CHAT, json=chat(content), headers=ALICE)

    first, second, third, fourth = await post(2), await post(2), await post(0), await post(4)

    used = int(first.headers["x-laid-prompt-tokens"])
    assert first.headers["x-ratelimit-remaining-images"] == "1"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(60 - used)
    assert_refused(second, "3 images a minute, and this request takes 2: 1 are left now")
    # A request that was refused for its images has used no tokens.
    assert third.headers["x-ratelimit-remaining-tokens"] == str(60 - used - int(third.headers["x-laid-prompt-tokens"]))
    assert_refused(fourth, "no wait helps", can_retry=False)
    assert len(cued_engine.bodies) == 2


async def test_the_official_client_raises_its_own_error(start_gateway: Start, chat: Make, key_file: KeyFile) -> None:
    gateway = await start_gateway(keys_file=key_file(requests_per_minute=1))

    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="laid-alice", max_retries=0) as client:
        await client.chat.completions.create(**chat())
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**chat())

    assert caught.value.code == "rate_limit_exceeded"


async def test_two_gateways_count_together(start_gateway: Start, chat: Make, key_file: KeyFile, redis: Any) -> None:
    path = key_file(requests_per_minute=10)
    gateways = [await start_gateway(keys_file=path, limits_storage=redis.url, **PATIENCE) for _ in range(2)]

    answers = await asyncio.gather(
        *(gateways[i % 2].post(CHAT, json=chat(), headers=ALICE) for i in range(16)),
    )

    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 6


async def test_without_keys_all_clients_share_the_defaults(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway(key_requests_per_minute=1)

    assert (await gateway.post(CHAT, json=chat())).status_code == 200
    assert (await gateway.post(CHAT, json=chat(), headers=ALICE)).status_code == 429


async def test_redis_may_end_and_come_back(
    start_gateway: Start, chat: Make, key_file: KeyFile, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = key_file(requests_per_minute=100, tokens_per_minute=10_000)
    # None of it is waited for: a port on which nobody listens refuses at once.
    shared = {"keys_file": path, "limits_storage": redis.url} | PATIENCE
    fail_open = await start_gateway(**shared)
    fail_closed = await start_gateway(**shared, limits_fail_open=False)

    async def post(gateway: httpx.AsyncClient) -> httpx.Response:
        return await gateway.post(CHAT, json=chat(), headers=ALICE)

    assert (await post(fail_open)).headers["x-ratelimit-remaining-requests"] == "99"
    assert (await post(fail_closed)).headers["x-ratelimit-remaining-requests"] == "98"

    await asyncio.to_thread(redis.stop)
    answers = [await post(fail_open), await post(fail_open)]
    refused = await post(fail_closed)

    assert [answer.status_code for answer in answers] == [200, 200]
    assert "x-ratelimit-remaining-requests" not in answers[0].headers
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "limits_unavailable"
    assert refused.headers["x-should-retry"] == "true"
    assert 'laid_limits_errors_total{model="tiny"} 4.0' in (await fail_open.get("/metrics")).text
    # Once in each gateway, however many requests come meanwhile.
    assert [record.message for record in caplog.records].count("limits_unavailable") == 2

    await asyncio.to_thread(redis.start)
    assert (await post(fail_closed)).headers["x-ratelimit-remaining-requests"] == "99"
    assert (await post(fail_open)).headers["x-ratelimit-remaining-requests"] == "98"


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """Where connections are taken and nothing is ever answered."""
    opened = []

    async def be_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)

    async with await asyncio.start_server(be_silent, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for writer in opened:
            writer.close()


async def test_a_redis_that_hangs_holds_nobody_up(
    start_gateway: Start, chat: Make, key_file: KeyFile, silent_port: int
) -> None:
    shared = {"limits_storage": f"redis://127.0.0.1:{silent_port}", "limits_timeout_seconds": 0.05}
    gateway = await start_gateway(keys_file=key_file(requests_per_minute=1), **shared)

    # The client itself would give up after two minutes.
    answers = [await gateway.post(CHAT, json=chat(), headers=ALICE) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200] * 3


def held_by(cued_engine: Any) -> tuple[asyncio.Semaphore, asyncio.Event]:
    """Lets the engine hold every request: what is released as one comes, and what lets them go on."""
    entered, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def hold(request: Any) -> Any:
        entered.release()
        await go_on.wait()
        return await cued_engine.chat(request)

    cued_engine.answer = hold
    return entered, go_on


async def test_requests_at_the_same_time(
    cued_engine: Any, start_gateway: Start, chat: Make, key_file: KeyFile, storage: str
) -> None:
    entered, go_on = held_by(cued_engine)
    gateway = await start_gateway(keys_file=key_file(concurrency=2), limits_storage=storage, **PATIENCE)
    leaving, staying = [asyncio.create_task(gateway.post(CHAT, json=chat(), headers=ALICE)) for _ in range(2)]
    for _ in range(2):
        await asyncio.wait_for(entered.acquire(), 60)
    cued_engine.answer = None

    refused = await gateway.post(CHAT, json=chat(), headers=ALICE)
    assert refused.status_code == 429
    assert "2 requests served at the same time" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "true"
    assert int(refused.headers["retry-after-ms"]) > 0

    # One that leaves frees its place, as one that is answered does.
    leaving.cancel()
    while (await gateway.post(CHAT, json=chat(), headers=ALICE)).status_code == 429:  # noqa: ASYNC110 - by HTTP only
        await asyncio.sleep(0.01)
    go_on.set()
    assert (await staying).status_code == 200
    answers = await asyncio.gather(*(gateway.post(CHAT, json=chat(), headers=ALICE) for _ in range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_requests_at_the_same_time_through_two_gateways(
    cued_engine: Any, start_gateway: Start, chat: Make, key_file: KeyFile, redis: Any
) -> None:
    entered, go_on = held_by(cued_engine)
    path = key_file(concurrency=2)
    first, second = [await start_gateway(keys_file=path, limits_storage=redis.url, **PATIENCE) for _ in range(2)]
    held = [asyncio.create_task(gateway.post(CHAT, json=chat(), headers=ALICE)) for gateway in (first, second)]
    for _ in held:
        await asyncio.wait_for(entered.acquire(), 60)
    cued_engine.answer = None

    # Each of the two serves one of the key's requests, and neither takes a third.
    for gateway in (first, second):
        assert_refused(await gateway.post(CHAT, json=chat(), headers=ALICE), "2 requests served at the same time")

    go_on.set()
    assert [(await answer).status_code for answer in held] == [200, 200]
    assert (await first.post(CHAT, json=chat(), headers=ALICE)).status_code == 200

    await asyncio.to_thread(redis.stop)
    assert (await first.post(CHAT, json=chat(), headers=ALICE)).status_code == 200
