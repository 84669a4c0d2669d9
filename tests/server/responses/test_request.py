"""What a Responses request is in chat, and what is refused, by name and with what to do."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from server.checkpoint import read_checkpoint
from server.errors import GatewayError, Reason
from server.prompt.prompt_counter import PromptCounter
from server.requests.draft import Draft
from server.responses.request import parse_responses
from server.settings import Settings

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": None, "description": "of a city"}


@pytest.fixture
def parse(make_settings: Callable[..., Settings]) -> Callable[..., Draft]:
    settings = make_settings()
    counter = PromptCounter(read_checkpoint(settings.checkpoint))

    def parse_body(**parameters: Any) -> Draft:
        draft = parse_responses(json.dumps({"model": "tiny"} | parameters).encode(), settings)
        counter.check_reserved(draft.conversation)
        return draft

    return parse_body


def messages(draft: Draft) -> list[dict[str, Any]]:
    return json.loads(msgspec.json.encode(draft.conversation.messages))


def engine(draft: Draft) -> dict[str, Any]:
    return json.loads(msgspec.json.encode(dict(draft.engine_parameters)))


def test_a_string_is_a_message_of_the_user(parse: Callable[..., Draft]) -> None:
    draft = parse(input="hello", instructions="be kind", max_output_tokens=7, temperature=0.5, user="u", seed=3)

    assert messages(draft) == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert engine(draft) == {
        "model": "tiny", "max_completion_tokens": 7, "temperature": 0.5, "user": "u", "seed": 3,
    }  # fmt: skip


def test_items_become_turns(parse: Callable[..., Draft]) -> None:
    draft = parse(
        input=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "type": "message", "content": [{"type": "input_text", "text": "a"}, IMAGE]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
            },
            CALL,
            CALL | {"call_id": "c2", "id": "fc_2", "status": "completed"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
            CALL,
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": [{"type": "input_image", "file_id": "file-1", "detail": "high"}]},
        ],
        tools=[TOOL],
    )

    call = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert messages(draft) == [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": IMAGE["image_url"]}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "b"}],
            "reasoning": "hm",
            "tool_calls": [call, call | {"id": "c2"}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": [{"type": "text", "text": "sun"}], "tool_call_id": "c2"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "file-1", "file_id": "file-1", "detail": "high"}}],
        },
    ]
    assert [image.path for image in draft.conversation.images()] == [
        "input[1].content[1].image_url",
        "input[11].content[0].file_id",
    ]


def test_what_chat_names_otherwise(parse: Callable[..., Draft]) -> None:
    form = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
    draft = parse(
        input="a",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": form, "verbosity": "medium"},
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        stream=True,
        stream_options={"include_obfuscation": False},
        store=False,
        previous_response_id=None,
        truncation="disabled",
        metadata={"a": "b"},
    )

    function = {"name": "weather", "description": "of a city", "parameters": SCHEMA}
    assert engine(draft) == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": SCHEMA, "strict": True},
        },
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "metadata": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"store": True}, "store", "send the whole conversation as 'input'"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
        ({"background": True}, "background", "answers are not kept"),
        ({"truncation": "auto"}, "truncation", "never shortened"),
        ({"prompt": {"id": "p"}}, "prompt", "send 'instructions'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "send it as a function"),
        ({"tool_choice": {"type": "mcp"}, "tools": [TOOL]}, "tool_choice", "expected 'none'"),
        ({"max_tokens": 3}, "max_tokens", "send 'max_output_tokens'"),
        ({"n": 2}, "n", "one answer"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "no such control"),
        ({"include": ["file_search_call.results"]}, "include", "message.output_text.logprobs"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "not padded"),
        ({"priority": 1}, "priority", "Unknown parameter"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    parse: Callable[..., Draft], change: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(GatewayError) as refused:
        parse(**({"input": "a"} | change))

    assert (refused.value.status, refused.value.param) == (400, param)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (3, "input"),
        ([], "input"),
        ([{"role": "user"}], "input[0].content"),
        ([{"content": "a"}], "input[0].role"),
        ([{"role": "robot", "content": "a"}], "input[0].role"),
        ([{"type": "item_reference", "id": "x"}], "input[0].type"),
        ([{"role": "user", "content": [{"type": "input_file"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": [IMAGE | {"file_id": "file-1"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": [IMAGE | {"image_url": 3}]}], "input[0].content[0].image_url.url"),
        ([{"role": "user", "content": "a", "call_id": "x"}], "input[0].call_id"),
        ([{"type": "function_call", "name": "x", "arguments": "{}"}], "input[0].call_id"),
        ([{"type": "function_call_output", "call_id": "x"}], "input[0].output"),
    ],
)
def test_misshapen_items_are_refused_by_path(parse: Callable[..., Draft], value: Any, param: str) -> None:
    with pytest.raises(GatewayError) as refused:
        parse(input=value)

    assert (refused.value.status, refused.value.reason, refused.value.param) == (400, Reason.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"instructions": "<|im_end|>"}, "instructions"),
        ({"input": "<|im_end|>"}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "<|im_end|>"}]}, "input[0].output"),
        ({"input": [CALL | {"name": "<|im_end|>"}]}, "input[0].tool_calls[0]"),
    ],
)
def test_control_tokens_are_refused_by_path(parse: Callable[..., Draft], change: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as refused:
        parse(**({"input": "a"} | change))

    assert (refused.value.reason, refused.value.param) == (Reason.RESERVED_TOKEN, param)
