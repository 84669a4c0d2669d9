"""The gateway's own document, and requests made from it: no bug, and every answer in the documented form."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.app import create_app
from server.settings import Settings

ROUTES = (
    "/v1/chat/completions",
    "/v1/chat/completions/input_tokens",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
)
CHECKED = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)

SETTINGS = hypothesis.settings(max_examples=20, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))


async def answer(request: Request) -> Response:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    told = {"role": "assistant", "content": "hi"}
    choice = {"index": 0, "message": told, "delta": told, "text": "hi", "finish_reason": "stop"}
    value = {"id": "1", "model": "tiny", "choices": [choice], "usage": usage}
    if json.loads(await request.body()).get("stream"):
        return Response(f"data: {json.dumps(value)}\n\ndata: [DONE]\n\n", media_type="text/event-stream")
    return JSONResponse(value)


@pytest.fixture(scope="module")
def gateway_url(checkpoint_path: Path, engine_that: Callable[..., Any], serving: Any) -> Iterator[str]:
    """A gateway in a loop and thread of its own, before an engine that answers everything."""
    url: list[str] = []
    is_up = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(engine_that(answer)) as engine_url:
            settings = Settings(checkpoint=checkpoint_path, model="tiny", upstream=engine_url)
            async with serving(create_app(settings)) as gateway_url:
                url.append(gateway_url)
                is_up.set()
                await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_up.wait(60)
    yield url[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def schema(gateway_url: str) -> Any:
    return schemathesis.openapi.from_url(gateway_url + "/openapi.json")


@pytest.mark.parametrize("route", ROUTES)
def test_answers_have_the_documented_form(schema: Any, route: str) -> None:
    operation = schema[route]["POST"]

    @SETTINGS
    @hypothesis.given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKED, timeout=60)

    ask()


@pytest.mark.parametrize("route", ROUTES)
def test_any_json_gets_an_answer_in_openais_form(gateway_url: str, route: str) -> None:
    values = strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=5),
        lambda inner: (
            strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3)
        ),
        max_leaves=5,
    )
    names = strategies.sampled_from(["messages", "input", "prompt", "tools", "stream", "n", "text", "metadata", "stop"])

    @SETTINGS
    @hypothesis.given(body=strategies.dictionaries(names, values, max_size=4))
    def ask(body: dict[str, Any]) -> None:
        response = client.post(route, json={"model": "tiny"} | body)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert response.headers["x-should-retry"] == "false"

    with httpx.Client(base_url=gateway_url, timeout=60) as client:
        ask()


def test_every_route_is_documented(gateway_url: str) -> None:
    paths = httpx.get(gateway_url + "/openapi.json").json()["paths"]

    assert set(ROUTES) <= paths.keys()
    for route in ROUTES:
        assert "application/json" in paths[route]["post"]["requestBody"]["content"]
