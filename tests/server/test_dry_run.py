"""The count without an answer: by image, and against both windows."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions/input_tokens"
RESPONSES = "/v1/responses/input_tokens"


async def test_tells_every_images_tokens_and_asks_no_engine(
    cued_engine: Any, start_gateway: Start, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway()
    body = chat([image_part(32, 32), {"type": "text", "text": "hello"}, image_part(128, 64)])

    answer = (await gateway.post(CHAT, json=body)).json()

    assert answer["images"] == [
        {"path": "messages[0].content[0].image_url", "width": 32, "height": 32, "tokens": 4, "fitted": None},
        {"path": "messages[0].content[2].image_url", "width": 128, "height": 64, "tokens": 32, "fitted": None},
    ]
    counted = (await gateway.post("/v1/chat/completions", json=body)).headers
    assert answer["input_tokens"] == int(counted["x-laid-prompt-tokens"])
    assert answer["input_tokens"] == answer["text_tokens"] + 36
    assert (answer["object"], answer["context_length"], answer["fits"]) == ("chat.completion.input_tokens", 2048, True)
    assert (answer["image_tokens"], answer["policy"], answer["error"]) == (36, "warn", None)
    assert len(cued_engine.bodies) == 1


async def test_both_routes_count_the_same(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway()

    first = (await gateway.post(CHAT, json=chat("hello"))).json()
    second = (await gateway.post(RESPONSES, json={"model": "tiny", "input": "hello"})).json()

    assert second == first | {"object": "response.input_tokens"}


@pytest.mark.parametrize("policy", ["warn", "reject", "fit"])
async def test_a_prompt_too_long_is_counted_all_the_same(start_gateway: Start, chat: Make, policy: str) -> None:
    gateway = await start_gateway(context_length=64)
    headers = {"x-laid-window-policy": policy} if policy != "warn" else {}

    answer = (await gateway.post(CHAT, json=chat("hello" * 100), headers=headers)).json()

    assert (answer["fits"], answer["policy"]) == (False, policy)
    assert answer["input_tokens"] > 64
    assert answer["window_use"] == pytest.approx(answer["input_tokens"] / 64, abs=1e-4)
    assert answer["error"]["code"] == "context_length_exceeded"


async def test_what_cannot_be_counted_is_refused(start_gateway: Start, chat: Make, image_part: Make) -> None:
    gateway = await start_gateway()

    response = await gateway.post(CHAT, json=chat([image_part(content=b"no image")]))

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_image")
