"""Images go to the real engine once; after that their names do, and nobody notices but by the time it takes."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.engines.held_images import HeldImages, may_miss_images
from server.errors import EngineUnavailableError, GatewayError, Reason

pytestmark = pytest.mark.engine

Make = Callable[..., Any]


@dataclass
class Wire:
    """Between gateway and engine: keeps what goes by, and can answer in the engine's place."""

    engine_url: str
    sent: list[Any] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    has_engine: bool = True
    """False: requests are answered here, and the engine never sees them."""

    async def chat(self, request: Request) -> Response:
        body = await request.body()
        self.sent.append(json.loads(body))
        if self.has_engine:
            async with httpx.AsyncClient(timeout=120) as client:
                answer = await client.post(
                    f"{self.engine_url}/v1/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
            self.statuses.append(answer.status_code)
            return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])
        message = {"role": "assistant", "content": "lost"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "chatcmpl-1", "model": "tiny", "choices": [choice]})

    async def get(self, request: Request) -> Response:
        async with httpx.AsyncClient(timeout=120) as client:
            answer = await client.get(f"{self.engine_url}{request.url.path}")
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    def images(self, index: int) -> list[tuple[str, bool]]:
        """Of the request with this index: each image's name, and whether its data was sent."""
        contents = [message["content"] for message in self.sent[index]["messages"]]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return [(part["uuid"], part["image_url"] is not None) for part in parts if part["type"] == "image_url"]

    def app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/health", self.get),
            Route("/v1/models", self.get),
        ]
        return Starlette(routes=routes)


@pytest.fixture
async def wire(served: Any, serving: Make) -> AsyncIterator[tuple[Wire, str]]:
    wire = Wire(served.engine_url)
    async with serving(wire.app()) as url:
        yield wire, url


async def ask(client: httpx.AsyncClient, body: Any) -> Any:
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def said(answer: Any) -> str:
    if isinstance(answer, list):
        return "".join(choice["delta"].get("content") or "" for chunk in answer for choice in chunk["choices"])
    return str(answer["choices"][0]["message"]["content"])


def conversation(chat: Make, image_part: Make, seed: int, **parameters: Any) -> dict[str, Any]:
    images = [image_part(128, 128 + 16 * i, kind="JPEG", seed=seed + i) for i in range(6)]
    options = {"temperature": 0, "max_tokens": 8, "seed": 1}
    return chat([*images, {"type": "text", "text": "What is this?"}], **options, **parameters)


def next_turn(body: dict[str, Any], *content: Any) -> dict[str, Any]:
    turns = [{"role": "assistant", "content": "A picture."}, {"role": "user", "content": list(content)}]
    return body | {"messages": body["messages"] + turns}


async def test_the_second_turn_sends_names_alone(
    wire: tuple[Wire, str], start_gateway: Make, chat: Make, image_part: Make
) -> None:
    between, url = wire
    client = await start_gateway(upstream=url)
    body = conversation(chat, image_part, seed=100)
    second = next_turn(body, {"type": "text", "text": "And now?"}, image_part(48, 48, seed=999))

    answer = await ask(client, body)
    again = await ask(client, body)
    third = await ask(client, second)

    assert [has_data for _, has_data in between.images(0)] == [True] * 6
    assert [has_data for _, has_data in between.images(1)] == [False] * 6
    assert [has_data for _, has_data in between.images(2)] == [False] * 6 + [True]
    assert between.statuses == [200] * 3
    assert [name for name, _ in between.images(0)] == [name for name, _ in between.images(1)]
    assert said(again) == said(answer)
    for usage in (again["usage"], third["usage"]):
        assert usage["prompt_tokens"] >= answer["usage"]["prompt_tokens"]
        # All but the last block of tokens, or two, come from the engine's prefix cache.
        assert usage["prompt_tokens_details"]["cached_tokens"] >= answer["usage"]["prompt_tokens"] - 2 * 128
    assert again["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["image_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_miss_is_healed_unseen(
    wire: tuple[Wire, str], start_gateway: Make, chat: Make, image_part: Make, stream: bool
) -> None:
    between, url = wire
    client = await start_gateway(upstream=url)
    body = conversation(chat, image_part, seed=200 + 100 * stream)
    streamed = body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    # The gateway takes this for the engine's answer, and its images for held: as after the engine's restart.
    between.has_engine = False
    assert said(await ask(client, body)) == "lost"
    between.has_engine = True

    healed = await ask(client, streamed)
    again = await ask(client, streamed)

    assert between.statuses == [400, 200, 200]
    assert [{has_data for _, has_data in between.images(i)} for i in range(4)] == [{True}, {False}, {True}, {False}]
    assert said(again) == said(healed) != ""


async def test_two_tenants_share_nothing(
    wire: tuple[Wire, str], start_gateway: Make, chat: Make, image_part: Make, tmp_path: Path
) -> None:
    between, url = wire
    keys = tmp_path / "keys.toml"
    keys.write_text("".join(f'[keys.{name}]\nsha256 = "{sha256(name.encode()).hexdigest()}"\n' for name in "ab"))
    client = await start_gateway(upstream=url, keys_file=keys)
    body = conversation(chat, image_part, seed=400)

    answers = []
    for tenant in ("a", "b", "a", "b"):
        client.headers["authorization"] = f"Bearer {tenant}"
        answers.append(await ask(client, body))

    names = [[name for name, _ in between.images(i)] for i in range(4)]
    assert names[0] == names[2]
    assert names[1] == names[3]
    assert not set(names[0]) & set(names[1])
    assert [{has_data for _, has_data in between.images(i)} for i in range(4)] == [{True}, {True}, {False}, {False}]
    assert {said(answer) for answer in answers} == {said(answers[0])}
    # The second tenant's first request finds nothing of the first one's in the prefix cache.
    assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_gateways_with_one_secret_agree_on_names(
    wire: tuple[Wire, str], start_gateway: Make, chat: Make, image_part: Make
) -> None:
    between, url = wire
    body = conversation(chat, image_part, seed=500)

    for secret in ("the same for both of them", "the same for both of them", None, None):
        client = await start_gateway(upstream=url, image_secret=secret)
        await ask(client, body)

    names = [tuple(name for name, _ in between.images(i)) for i in range(4)]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_what_was_used_last_is_remembered() -> None:
    held = HeldImages(2)
    held.add(["a", "b"])
    assert "a" in held

    held.add(["c"])

    assert [name in held for name in "abc"] == [True, False, True]
    held.drop(["a", "unknown"])
    assert [name in held for name in "abc"] == [False, False, True]


@pytest.mark.parametrize(
    ("error", "may_be"),
    [
        (GatewayError(400, Reason.ENGINE_REFUSED, "Cache miss for image at index 3 but data is not provided."), True),
        (GatewayError(500, Reason.ENGINE_FAILED, "The engine failed while it served this request."), True),
        (GatewayError(400, Reason.ENGINE_REFUSED, "temperature must be non-negative"), False),
        (GatewayError(504, Reason.ENGINE_FAILED, "The engine did not answer in time."), False),
        (EngineUnavailableError(5), False),
    ],
)
def test_only_what_a_miss_can_cause_is_repeated(error: GatewayError, may_be: bool) -> None:
    assert may_miss_images(error) is may_be
