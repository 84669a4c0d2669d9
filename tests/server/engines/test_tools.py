"""Tool calls, structured output and logprobs with the real engine: counted and answered as it does."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.engine

Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA} | function}


def call(arguments: str, number: int = 1) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def assert_counted(response: httpx.Response) -> None:
    assert response.status_code == 200, response.text
    assert int(response.headers["x-laid-prompt-tokens"]) == response.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "tools",
    [
        [tool()],
        [tool(description='Says "it" <b>ü漢</b>\n', strict=True), tool("other", parameters=None)],
        [tool(parameters={"type": "object", "properties": {"a": {"minimum": 1e-7, "maximum": 10**30, "x": [1.0]}}})],
        [{"type": "function", "function": {"name": "bare"}}],
    ],
    ids=["one", "two", "numbers", "bare"],
)
@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_the_count_follows_tools(http: httpx.Client, chat: Make, tools: list[Any], choice: str | None) -> None:
    options = {} if choice is None else {"tool_choice": choice}

    assert_counted(http.post(CHAT, json=chat(tools=tools, max_tokens=1, **options)))


@pytest.mark.parametrize(
    "arguments",
    [
        '{"city": "Oslo"}',
        "",
        "[]",
        "42",
        "no json",
        '{"a": {"b": [1.50, 1e3, "ü\\u00fc\\n", null, true]}}',
        '{"x": NaN}',
    ],
)
def test_the_count_follows_calls_and_results(http: httpx.Client, chat: Make, image_part: Make, arguments: str) -> None:
    body = chat(tools=[tool()], max_tokens=1)
    body["messages"] += [
        {"role": "assistant", "content": "I look.", "tool_calls": [call(arguments), call('{"city":"Rome"}', 2)]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        {"role": "assistant", "tool_calls": [call(arguments)]},
        {"role": "tool", "tool_call_id": "call_1", "content": [image_part(32, 32), {"type": "text", "text": "it"}]},
    ]

    assert_counted(http.post(CHAT, json=body))


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_forced_call_comes_back(http: httpx.Client, chat: Make, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    body = chat(tools=[tool(strict=True), tool("other")], tool_choice=choice, max_tokens=1000, seed=1, stream=stream)

    response = http.post(CHAT, json=body)

    assert response.status_code == 200, response.text
    if stream:
        events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
        calls = [part for event in events for part in event["choices"][0]["delta"].get("tool_calls") or ()]
        name = "".join(part["function"].get("name") or "" for part in calls)
        arguments = "".join(part["function"].get("arguments") or "" for part in calls)
    else:
        (made,) = response.json()["choices"][0]["message"]["tool_calls"]
        name, arguments = made["function"]["name"], made["function"]["arguments"]
    assert name == "weather"
    assert json.loads(arguments)["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
    ],
    ids=["response_format", "structured_outputs"],
)
def test_answers_follow_a_schema(http: httpx.Client, chat: Make, options: dict[str, Any]) -> None:
    response = http.post(CHAT, json=chat(max_tokens=1000, seed=1, **options))

    assert_counted(response)
    assert json.loads(response.json()["choices"][0]["message"]["content"])["city"] in ("Oslo", "Rome")
