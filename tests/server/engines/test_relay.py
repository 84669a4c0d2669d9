"""Both halves on real sockets: what the client sees when the engine streams, fails, breaks off or goes on too long."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
# How long something may take on a busy machine; how long it does take is for benchmarks.
PATIENCE_SECONDS = 60


def event(value: Any) -> bytes:
    return (
        b"data: " + (value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()) + b"\n\n"
    )


def delta(text: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": text}}]}


def usage_chunk(prompt_tokens: int) -> dict[str, Any]:
    details = {"cached_tokens": 2, "multimodal_tokens": {"image": 4}}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "prompt_tokens_details": details}
    return {"id": "chatcmpl-1", "choices": [], "usage": usage}


def streaming(*chunks: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        return StreamingResponse(body(), media_type="text/event-stream")

    return answer


async def until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def metric(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    """The sum of all samples of this name that have these labels."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    values = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    assert values, f"{name} {labels}"
    return sum(values)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_each_chunk_is_passed_on_when_it_comes(cued_engine: Any, start_gateway: Start, chat: Make) -> None:
    go_on = asyncio.Event()

    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield event(delta("first"))
            # Without the client's having read the first event this would wait for ever.
            await go_on.wait()
            yield event(delta("second")) + event(b"[DONE]")

        return StreamingResponse(body(), media_type="text/event-stream")

    cued_engine.answer = answer
    gateway = await start_gateway()
    async with gateway.stream("POST", CHAT, json=chat(stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-laid-prompt-tokens"] == "11"
        chunks = response.aiter_raw()
        assert await anext(chunks) == event(delta("first"))
        go_on.set()
        assert b"".join([chunk async for chunk in chunks]) == event(delta("second")) + event(b"[DONE]")
    assert await metric(gateway, "laid_time_to_first_token_seconds_count", model="tiny", context_class="<8k") == 1


async def test_a_client_that_leaves_at_done_has_left_a_finished_exchange(
    cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    ended = False

    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            nonlocal ended
            yield event(delta("a")) + event(b"[DONE]")
            # Time enough for an early [DONE] to arrive; a held one arrives after `ended` however long this takes.
            await asyncio.sleep(0.05)
            ended = True

        return StreamingResponse(body(), media_type="text/event-stream")

    cued_engine.answer = answer
    gateway = await start_gateway()
    async with gateway.stream("POST", CHAT, json=chat(stream=True)) as response:
        async for chunk in response.aiter_raw():
            if b"[DONE]" in chunk:
                break
    assert ended

    async def is_counted() -> bool:
        return "laid_requests_total{" + f'route="{CHAT}",status="200"}} 1.0' in (await gateway.get("/metrics")).text

    await eventually(is_counted)
    assert await metric(gateway, "laid_errors_total", reason="client_left") == 0
    assert await metric(gateway, "laid_request_duration_seconds_count", model="tiny", context_class="<8k") == 1


async def test_events_cut_anywhere_arrive_whole(cued_engine: Any, start_gateway: Start, chat: Make) -> None:
    whole = event(delta('a "usage":{ b')) + event(delta("ü\n\n")) + event(usage_chunk(11)) + event(b"[DONE]")
    cued_engine.answer = streaming(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat(stream=True, stream_options={"include_usage": True}))

    events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert events[:2] == [delta('a "usage":{ b'), delta("ü\n\n")]
    assert events[2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2, "image_tokens": 4, "text_tokens": 7}
    assert response.text.endswith("data: [DONE]\n\n")


async def test_usage_the_client_did_not_ask_for_is_checked_and_kept_back(
    cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    cued_engine.answer = streaming(event(delta("a")), event(usage_chunk(15)), event(b"[DONE]"))
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat(stream=True))

    assert json.loads(cued_engine.bodies[0])["stream_options"] == {"include_usage": True}
    assert response.content == event(delta("a")) + event(b"[DONE]")
    # The engine counted 15 where the gateway counted 11.
    assert await metric(gateway, "laid_count_difference_tokens_sum", model="tiny") == 4


async def test_a_whole_answer_gets_its_details(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat())

    assert response.json()["choices"][0]["message"]["content"] == "hi"
    assert response.json()["usage"]["prompt_tokens_details"] == {
        "image_tokens": 0,
        "text_tokens": 11,
        "cached_tokens": 0,
    }
    assert response.headers["x-laid-window-use"] == f"{11 / 2048:.3f}"
    assert response.headers["x-laid-effective-window-use"] == "unknown"
    assert await metric(gateway, "laid_count_difference_tokens_sum", model="tiny") == 0


@pytest.mark.parametrize("code", [400, 500])
async def test_an_error_inside_a_stream_is_an_event(
    cued_engine: Any, start_gateway: Start, chat: Make, code: int
) -> None:
    error = {"error": {"message": "see http://10.1.2.3:8001/x", "type": "Bad", "param": None, "code": code}}
    cued_engine.answer = streaming(event(delta("a")), event(error), event(b"[DONE]"))
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat(stream=True))

    sent = json.loads(response.text.split("\n\n")[1][6:])["error"]
    assert sent["code"] == ("engine_refused" if code == 400 else "engine_failed")
    assert set(sent) == {"message", "type", "param", "code"}
    assert "10.1.2.3" not in response.text
    assert await metric(gateway, "laid_errors_total", reason=sent["code"]) == 1


@pytest.mark.parametrize("is_clean", [False, True])
async def test_a_stream_that_ends_too_early_ends_with_an_error(
    cued_engine: Any, start_gateway: Start, chat: Make, is_clean: bool
) -> None:
    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield event(delta("a"))
            if not is_clean:
                raise RuntimeError("on cue")

        return StreamingResponse(body(), media_type="text/event-stream")

    cued_engine.answer = answer
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat(stream=True))

    first, last, rest = response.text.split("\n\n")
    assert json.loads(first[6:]) == delta("a")
    assert json.loads(last[6:])["error"]["code"] == "engine_failed"
    assert rest == ""
    assert len(cued_engine.bodies) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
async def test_a_client_that_leaves_cancels_the_request(
    cued_engine: Any, start_gateway: Start, chat: Make, stream: bool
) -> None:
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        arrived.set()
        await until_gone(request)
        cancelled.set()
        return Response()

    cued_engine.answer = answer
    gateway = await start_gateway()
    leaving = asyncio.create_task(gateway.post(CHAT, json=chat(stream=stream)))
    await asyncio.wait_for(arrived.wait(), PATIENCE_SECONDS)
    leaving.cancel()
    await asyncio.wait_for(cancelled.wait(), PATIENCE_SECONDS)

    async def is_counted() -> bool:
        return await metric(gateway, "laid_errors_total", reason="client_left") == 1

    await eventually(is_counted)
    assert await metric(gateway, "laid_requests_in_flight", model="tiny") == 0


async def test_a_client_that_leaves_in_mid_stream_cancels_the_request(
    cued_engine: Any, start_gateway: Start, chat: Make
) -> None:
    cancelled = asyncio.Event()

    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                yield event(delta("a"))
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        return StreamingResponse(body(), media_type="text/event-stream")

    cued_engine.answer = answer
    gateway = await start_gateway()
    async with gateway.stream("POST", CHAT, json=chat(stream=True)) as response:
        await anext(response.aiter_raw())

    # The engine is silent at this moment: nothing but the disconnect itself can tell the gateway.
    await asyncio.wait_for(cancelled.wait(), PATIENCE_SECONDS)


async def test_an_engine_that_is_down_is_503_with_a_time_to_retry(
    start_gateway: Start, chat: Make, free_port: int
) -> None:
    gateway = await start_gateway(upstream=f"http://127.0.0.1:{free_port}", retry_after_seconds=7)

    response = await gateway.post(CHAT, json=chat())

    assert response.status_code == 503
    assert (response.headers["retry-after"], response.headers["x-should-retry"]) == ("7", "true")
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert str(free_port) not in response.text


@pytest.mark.parametrize(
    ("status", "sent_status", "code"),
    [
        (400, 400, "engine_refused"),
        (422, 422, "engine_refused"),
        (500, 500, "engine_failed"),
        (503, 503, "engine_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
async def test_the_engines_refusals_come_in_openais_form(
    cued_engine: Any, start_gateway: Start, chat: Make, stream: bool, status: int, sent_status: int, code: str
) -> None:
    async def answer(_: Request) -> Response:
        error = {
            "message": "bad top_p, see http://10.1.2.3/trace",
            "type": "BadRequestError",
            "param": "top_p",
            "code": status,
        }
        return JSONResponse({"error": error}, status_code=status)

    cued_engine.answer = answer
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat(stream=stream))

    assert (response.status_code, response.json()["error"]["code"]) == (sent_status, code)
    assert "10.1.2.3" not in response.text
    if code == "engine_refused":
        assert response.json()["error"]["message"] == "bad top_p, see [address]"
        assert response.json()["error"]["param"] == "top_p"
        assert response.headers["x-should-retry"] == "false"


async def test_an_engine_that_stays_silent_is_504(cued_engine: Any, start_gateway: Start, chat: Make) -> None:
    async def answer(request: Request) -> Response:
        await until_gone(request)
        return Response()

    cued_engine.answer = answer
    gateway = await start_gateway(first_byte_timeout_seconds=0.2)

    response = await gateway.post(CHAT, json=chat())

    assert (response.status_code, response.json()["error"]["code"]) == (504, "engine_failed")


async def test_an_answer_that_is_no_json_is_502(cued_engine: Any, start_gateway: Start, chat: Make) -> None:
    async def answer(_: Request) -> Response:
        return Response("<html>")

    cued_engine.answer = answer
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat())

    assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_failed")
