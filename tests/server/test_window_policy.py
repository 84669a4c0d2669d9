"""The window policy through the whole gateway: what the client is told, what the engine gets, what it counts."""

import base64
import io
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
POLICY = "x-laid-window-policy"
TEXT = {"type": "text", "text": "What else is there?"}


@pytest.fixture
def measured(checkpoint_path: Path, tmp_path: Path) -> Path:
    """The checkpoint, with an effective window of 300 tokens."""
    folder = shutil.copytree(checkpoint_path, tmp_path / "measured", ignore=shutil.ignore_patterns("*.safetensors"))
    window = {"threshold": 0.6, "kind": "absolute", "censored": False}
    window |= {"images": 60, "images_low": 50, "images_high": 70}
    window |= {"tokens": 300.0, "tokens_low": 250.0, "tokens_high": 350.0}
    content = {"task": "miniature/open", "threshold": 0.6, "confidence": 0.95, "windows": [window]}
    (folder / "laid.json").write_text(json.dumps({"format": 1, "effective_window": content}))
    return Path(folder)


def two_turns(image_part: Make) -> list[dict[str, Any]]:
    """64 tokens of an image in the first turn, 4 times 64 in the second, and text."""
    return [
        {"role": "user", "content": [image_part(128, 128, seed=9), TEXT]},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [*(image_part(128, 128, kind="JPEG", seed=i) for i in range(4)), TEXT]},
    ]


def sent_images(body: bytes) -> list[bytes]:
    """The files that the engine got."""
    parts = [
        part
        for message in json.loads(body)["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def size_of(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


async def test_warn_is_the_default(
    cued_engine: Any, start_gateway: Start, measured: Path, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway(checkpoint=measured)

    response = await gateway.post(CHAT, json=chat() | {"messages": two_turns(image_part)})

    assert response.status_code == 200
    prompt_tokens = int(response.headers["x-laid-prompt-tokens"])
    assert prompt_tokens > 300
    assert response.headers["x-laid-warning"].startswith(
        f"The prompt of {prompt_tokens} tokens is {prompt_tokens - 300} more than the effective window of 300 tokens"
    )
    assert [size_of(content) for content in sent_images(cued_engine.bodies[0])] == [(128, 128)] * 5


async def test_within_the_window_there_is_no_warning(start_gateway: Start, measured: Path, chat: Make) -> None:
    gateway = await start_gateway(checkpoint=measured)

    response = await gateway.post(CHAT, json=chat())

    assert "x-laid-warning" not in response.headers
    assert "x-laid-fitted-images" not in response.headers


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("chosen_by", ["setting", "header"])
async def test_reject(
    cued_engine: Any,
    start_gateway: Start,
    measured: Path,
    chat: Make,
    image_part: Make,
    chosen_by: str,
    stream: bool,
) -> None:
    gateway = await start_gateway(checkpoint=measured, window_policy="reject" if chosen_by == "setting" else "warn")
    headers = {POLICY: "reject"} if chosen_by == "header" else {}

    response = await gateway.post(CHAT, json=chat(stream=stream) | {"messages": two_turns(image_part)}, headers=headers)

    assert response.status_code == 400
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("effective_window_exceeded", "invalid_request_error")
    assert "320 of them for 5 images" in error["message"]
    assert "effective window of 300 tokens (250 to 350 at 95% confidence)" in error["message"]
    assert "accuracy on miniature/open stays at or above 60%" in error["message"]
    assert "The first image that does not fit is messages[2].content[3].image_url (64 tokens)." in error["message"]
    assert cued_engine.bodies == []


@pytest.mark.parametrize("chosen_by", ["setting", "header"])
async def test_fit_scales_the_last_turns_images(
    cued_engine: Any, start_gateway: Start, measured: Path, chat: Make, image_part: Make, chosen_by: str
) -> None:
    gateway = await start_gateway(checkpoint=measured, window_policy="fit" if chosen_by == "setting" else "warn")
    headers = {POLICY: "fit"} if chosen_by == "header" else {}
    messages = two_turns(image_part)

    response = await gateway.post(CHAT, json=chat() | {"messages": messages}, headers=headers)

    assert response.status_code == 200, response.text
    told = {name: value for name, value in response.headers.items() if name.startswith("x-laid")}
    assert told["x-laid-fitted-images"] == "4"
    assert told["x-laid-original-image-tokens"] == "320"
    assert told["x-laid-image-tokens"] == str(64 + 4 * 36)
    assert int(told["x-laid-original-prompt-tokens"]) - int(told["x-laid-prompt-tokens"]) == 4 * (64 - 36)
    assert float(told["x-laid-effective-window-use"]) <= 1
    earlier, *fitted = sent_images(cued_engine.bodies[0])
    url = messages[0]["content"][0]["image_url"]["url"]
    assert earlier == base64.b64decode(url.partition(",")[2])
    assert [size_of(content) for content in fitted] == [(96, 96)] * 4
    assert [Image.open(io.BytesIO(content)).format for content in fitted] == ["JPEG"] * 4


async def test_the_dry_run_says_what_fit_would_do(
    cued_engine: Any, start_gateway: Start, measured: Path, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway(checkpoint=measured)
    body = chat() | {"messages": two_turns(image_part)}

    told = (await gateway.post(CHAT + "/input_tokens", json=body, headers={POLICY: "fit"})).json()

    answered = (await gateway.post(CHAT, json=body, headers={POLICY: "fit"})).headers
    assert told["fits"]
    assert told["input_tokens"] == int(answered["x-laid-prompt-tokens"])
    assert told["original_input_tokens"] == int(answered["x-laid-original-prompt-tokens"])
    assert (told["original_image_tokens"], told["image_tokens"]) == (320, 64 + 4 * 36)
    assert [image["fitted"] for image in told["images"]] == [None, *[{"width": 96, "height": 96}] * 4]
    assert len(cued_engine.bodies) == 1


async def test_the_model_card_tells_both_windows_and_the_family(start_gateway: Start, measured: Path) -> None:
    gateway = await start_gateway(checkpoint=measured)

    card = (await gateway.get("/v1/models/tiny")).json()

    assert (card["max_model_len"], card["family"]) == (2048, "qwen2_5_vl")
    window = card["effective_window"]
    assert (window["tokens"], window["tokens_low"], window["tokens_high"]) == (300.0, 250.0, 350.0)
    assert (window["task"], window["threshold"], window["confidence"]) == ("miniature/open", 0.6, 0.95)


async def test_a_fitted_request_asks_the_engine_for_the_same_again(
    cued_engine: Any, start_gateway: Start, measured: Path, chat: Make, image_part: Make
) -> None:
    """The engine's caches know a fitted image by its new content."""
    gateway = await start_gateway(checkpoint=measured, window_policy="fit")
    body = chat() | {"messages": two_turns(image_part)}
    uuids = []
    for _ in range(2):
        assert (await gateway.post(CHAT, json=body)).status_code == 200
        parts = json.loads(cued_engine.bodies[-1])["messages"][2]["content"]
        uuids.append([part["uuid"] for part in parts if part["type"] == "image_url"])
    assert (await gateway.post(CHAT, json=chat(body["messages"][2]["content"][:1]))).status_code == 200
    (original,) = [part["uuid"] for part in json.loads(cued_engine.bodies[-1])["messages"][0]["content"]]

    assert uuids[0] == uuids[1]
    assert len({*uuids[0], original}) == 5


async def test_the_next_turn_shows_the_engine_what_was_fitted_before(
    cued_engine: Any, start_gateway: Start, measured: Path, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway(checkpoint=measured, window_policy="fit")
    messages = two_turns(image_part)
    first = await gateway.post(CHAT, json=chat() | {"messages": messages})
    later = [*messages, {"role": "assistant", "content": "a circle"}, {"role": "user", "content": [TEXT]}]

    told = (await gateway.post(CHAT + "/input_tokens", json=chat() | {"messages": later})).json()
    second = await gateway.post(CHAT, json=chat() | {"messages": later})

    assert second.status_code == 200, second.text
    assert second.headers["x-laid-image-tokens"] == first.headers["x-laid-image-tokens"] == str(64 + 4 * 36)
    assert second.headers["x-laid-fitted-images"] == "4"
    assert told["input_tokens"] == int(second.headers["x-laid-prompt-tokens"])
    names = [
        [
            part["uuid"]
            for message in json.loads(body)["messages"][:3:2]
            for part in message["content"]
            if "uuid" in part
        ]
        for body in cued_engine.bodies
    ]
    assert names[0] == names[1]

    # Another conversation with one of these images gets it whole.
    await gateway.post(CHAT, json=chat(messages[2]["content"][:1]))
    (alone,) = [part["uuid"] for part in json.loads(cued_engine.bodies[-1])["messages"][0]["content"]]
    assert alone not in names[0]


async def test_what_cannot_be_fitted_is_refused(
    cued_engine: Any, start_gateway: Start, measured: Path, chat: Make, image_part: Make
) -> None:
    gateway = await start_gateway(checkpoint=measured, window_policy="fit")
    content = [*(image_part(40, 40, seed=i) for i in range(90)), TEXT]

    response = await gateway.post(CHAT, json=chat(content))

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "effective_window_exceeded")
    assert "Scaled down as far as sensible, the images of the last turn (90) leave 554 tokens" in error["message"]
    assert cued_engine.bodies == []


@pytest.mark.parametrize("asked", ["none", "warn"])
async def test_a_policy_that_may_not_be_chosen_is_refused(start_gateway: Start, chat: Make, asked: str) -> None:
    gateway = await start_gateway(window_policy="reject")

    response = await gateway.post(CHAT, json=chat(), headers={POLICY: asked})

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", POLICY)


async def test_fitted_images_and_mismatches_are_counted(
    start_gateway: Start, measured: Path, chat: Make, image_part: Make
) -> None:
    """The cued engine always says 11 tokens, which is wrong for the first request and right for the second."""
    gateway = await start_gateway(checkpoint=measured, window_policy="fit")

    await gateway.post(CHAT, json=chat() | {"messages": two_turns(image_part)})
    await gateway.post(CHAT, json=chat("hello"))

    lines = (await gateway.get("/metrics")).text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['laid_fitted_images_total{model="tiny"}'] == "4.0"
    assert samples['laid_count_mismatches_total{model="tiny"}'] == "1.0"
    assert samples['laid_count_difference_tokens_count{model="tiny"}'] == "2.0"


@pytest.mark.engine
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_count_of_fitted_images_equals_usage(
    served: Any, chat: Make, image_part: Make, kind: str, stream: bool
) -> None:
    """40 images of 64 tokens and odd shapes do not fit into 2,048 tokens; scaled they do, and as counted."""
    content = [*(image_part(200 + i, 200 - i, kind=kind, seed=i) for i in range(40)), TEXT]
    body = chat(content, max_tokens=1, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))

    response = httpx.post(served.url + CHAT, json=body, headers={POLICY: "fit"}, timeout=120)

    assert response.status_code == 200, response.text
    if stream:
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if "usage" in line]
        usage = json.loads(events[-1])["usage"]
    else:
        usage = response.json()["usage"]
    assert int(response.headers["x-laid-fitted-images"]) == 40
    assert int(response.headers["x-laid-original-prompt-tokens"]) > 2048
    assert int(response.headers["x-laid-prompt-tokens"]) == usage["prompt_tokens"] < 2048
    assert int(response.headers["x-laid-image-tokens"]) == usage["prompt_tokens_details"]["image_tokens"]
