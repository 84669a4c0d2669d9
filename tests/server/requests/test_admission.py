"""What is admitted, and how each refusal names the part it is about."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.errors import GatewayError, Reason
from server.requests.admission import Admitted

Make = Callable[..., Any]


def refusal(admit: Callable[..., Admitted], body: Any, **changes: Any) -> GatewayError:
    with pytest.raises(GatewayError) as refused:
        admit(body, **changes)
    return refused.value


def test_an_image_is_counted(admit: Make, chat: Make, image_part: Make) -> None:
    assert admit(chat([image_part(32, 32), {"type": "text", "text": "ü"}])).count.image_tokens == (4,)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model": "tiny"} x', "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON"),
        (b'{"model": "\xff"}', "not valid UTF-8"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b'{"model": "tiny", "temperature": NaN}', "not valid JSON"),
        (b'{"model": "tiny", "metadata": ' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32"),
        (b'{"model": "tiny", "metadata": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"model": "tiny", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_json_is_refused(admit: Make, body: bytes, words: str) -> None:
    error = refusal(admit, body)

    assert (error.status, error.reason) == (400, Reason.INVALID_JSON)
    assert words in error.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        ([3], "messages[0]"),
        ([{"content": "a"}], "messages[0]"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"role": "tool", "content": "a"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": "a", "tool_call_id": "x"}], "messages[0].tool_call_id"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "messages[0].tool_calls[0]"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "a", "tool_calls": []}], "messages[0].tool_calls"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "uuid": "x"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "x"}]}], "messages[0].content[0].type"),
        (
            [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": ""}}]}],
            "messages[0].content[0].type",
        ),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "messages[0].content[0].image_url"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}]}],
            "messages[0].content[0].image_url.detail",
        ),
    ],
)
def test_misshapen_messages_are_refused_by_path(admit: Make, chat: Make, messages: Any, param: str) -> None:
    error = refusal(admit, chat() | {"messages": messages})

    assert (error.status, error.reason, error.param) == (400, Reason.INVALID_REQUEST, param)
    assert param in error.message


def test_an_assistants_answer_can_be_sent_back_as_it_came(admit: Make, chat: Make) -> None:
    answer = {"role": "assistant", "content": "yes", "refusal": None, "annotations": None, "audio": None}
    answer |= {"function_call": None, "tool_calls": None, "reasoning": None}
    body = chat()
    body["messages"] += [answer, {"role": "user", "content": "and?"}]

    assert admit(body).count.prompt_tokens > admit(chat()).count.prompt_tokens


def test_an_unknown_model_is_404(admit: Make, chat: Make) -> None:
    error = refusal(admit, chat(model="gpt-5"))

    assert (error.status, error.reason, error.param) == (404, Reason.MODEL_NOT_FOUND, "model")


def test_all_bad_images_are_reported_at_once(admit: Make, chat: Make, image_part: Make) -> None:
    content = [image_part(32, 32, seed=seed) for seed in range(30)]
    content[3] = image_part(content=b"no image")
    content[17] = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    content[21] = image_part(1, 300)

    error = refusal(admit, chat(content))

    assert (error.status, error.reason, error.param) == (
        400,
        Reason.INVALID_IMAGE,
        "messages[0].content[3].image_url",
    )
    assert error.message.startswith("3 of 30 images cannot be used.")
    assert [f"messages[0].content[{i}].image_url" in error.message for i in (3, 17, 21)] == [True] * 3


def test_all_truncated_images_are_reported_at_once(admit: Make, chat: Make, image_part: Make, picture: Make) -> None:
    cut = picture(64, 64)[:-200]
    content = [image_part(32, 32), image_part(content=cut), image_part(content=cut)]

    error = refusal(admit, chat(content))

    assert error.message.startswith(
        "2 of 3 images cannot be used. messages[0].content[1].image_url: the image is trunc"
    )


@pytest.mark.parametrize(
    ("changes", "reason", "param"),
    [
        ({"max_images": 2}, Reason.TOO_MANY_IMAGES, "messages[0].content[2].image_url"),
        ({"max_image_bytes": 100}, Reason.INVALID_IMAGE, "messages[0].content[0].image_url"),
        ({"max_image_pixels": 1000}, Reason.INVALID_IMAGE, "messages[0].content[0].image_url"),
        ({"max_total_pixels": 2048}, Reason.MEDIA_BUDGET_EXCEEDED, "messages[0].content[2].image_url"),
        ({"max_image_tokens": 8}, Reason.MEDIA_BUDGET_EXCEEDED, "messages[0].content[2].image_url"),
        ({"max_total_image_bytes": 100}, Reason.MEDIA_BUDGET_EXCEEDED, "messages[0].content[0].image_url"),
        ({"max_text_characters": 3}, Reason.INVALID_REQUEST, "messages"),
        ({"max_messages": 1, "max_parts": 3}, Reason.INVALID_REQUEST, "messages"),
        ({"max_parameter_bytes": 5}, Reason.BODY_TOO_LARGE, None),
    ],
)
def test_every_limit_holds(
    admit: Make, chat: Make, image_part: Make, changes: dict[str, int], reason: Reason, param: str | None
) -> None:
    body = chat([image_part(32, 32), image_part(32, 32), image_part(32, 32), {"type": "text", "text": "four"}])
    assert admit(body).count.total_image_tokens == 12

    error = refusal(admit, body, **changes)

    assert (error.reason, error.param) == (reason, param)


def test_limits_are_reached_before_they_are_crossed(admit: Make, chat: Make, image_part: Make) -> None:
    body = chat([image_part(32, 32), image_part(32, 32), {"type": "text", "text": "four"}])
    limits = {"max_images": 2, "max_image_pixels": 1024, "max_total_pixels": 2048, "max_text_characters": 4}

    assert admit(body, **limits, max_messages=1, max_parts=3).count.total_image_tokens == 8


def test_an_overlong_prompt_is_told_what_it_takes(admit: Make, chat: Make, image_part: Make) -> None:
    content = [image_part(128, 128, seed=i % 3) for i in range(40)]

    error = refusal(admit, chat(content))

    # 40 images of 64 tokens and their two brackets, beside 9 of the template.
    assert (error.status, error.reason, error.param) == (400, Reason.CONTEXT_LENGTH_EXCEEDED, "messages")
    prompt = 40 * 66 + admit(chat("")).count.prompt_tokens
    for fact in (
        "maximum context length is 2048 tokens",
        f"takes {prompt} tokens",
        "2560 of them for 40 images",
        f"{prompt + 1 - 2048} too many",
        "The first image that does not fit is messages[0].content[30].image_url (64 tokens)",
    ):
        assert fact in error.message


def test_the_window_is_filled_to_its_last_token(admit: Make, chat: Make) -> None:
    prompt = admit(chat()).count.prompt_tokens

    assert admit(chat(max_tokens=2048 - prompt)).count.prompt_tokens == prompt
    error = refusal(admit, chat(max_tokens=2049 - prompt))
    assert (error.reason, error.param) == (Reason.CONTEXT_LENGTH_EXCEEDED, "max_tokens")
    assert f"The prompt takes {prompt} and max_tokens asks for {2049 - prompt}: 1 too many" in error.message


def test_the_last_of_two_equal_keys_counts_as_for_the_engine(admit: Make) -> None:
    body = b'{"model":"other","model":"tiny","messages":[],"messages":[{"role":"user","content":"a"}]}'

    assert admit(body).parameters.model == json.loads(body)["model"] == "tiny"


CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}}, "required": ["city"]}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "parameters": CITY} | function}


def call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_tools_and_calls_are_counted(admit: Make, engine_json: Make, chat: Make) -> None:
    plain, with_tools = admit(chat()), admit(chat(tools=[tool()], tool_choice="auto"))
    called = chat(tools=[tool()])
    called["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call('{"city": "Oslo"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]

    assert plain.count.prompt_tokens < with_tools.count.prompt_tokens < admit(called).count.prompt_tokens
    assert engine_json(admit(called)) == {
        **called,
        "messages": [{k: v for k, v in message.items() if v is not None} for message in called["messages"]],
    }


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([], "tools"),
        ([{"type": "web_search"}], "tools[0].type"),
        ([tool(color="red")], "tools[0].function"),
        ([tool(name=None)], "tools[0].function.name"),
        ([tool(parameters="x")], "tools[0].function.parameters"),
    ],
)
def test_misshapen_tools_are_refused_by_path(admit: Make, chat: Make, tools: Any, param: str) -> None:
    error = refusal(admit, chat(tools=tools))

    assert (error.status, error.reason, error.param) == (400, Reason.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [tool(description="a<|im_end|>b")]}, "tools[0]"),
        ({"tools": [tool(parameters={"a": [{"<|image_pad|>": 1}]})]}, "tools[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [call('{"x": "<|im_\\u0073tart|>"}')]}]},
            "messages[0].tool_calls[0]",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "a", "content": "<|im_end|>"}]}, "messages[0].content"),
    ],
)
def test_control_tokens_in_tools_are_refused(admit: Make, chat: Make, body: dict[str, Any], param: str) -> None:
    error = refusal(admit, chat() | body)

    assert (error.reason, error.param) == (Reason.RESERVED_TOKEN, param)


def test_arguments_nested_too_deeply_are_refused(admit: Make, chat: Make) -> None:
    for depth in (40, 100_000):
        deep = '{"a": ' + "[" * depth + "]" * depth + "}"
        error = refusal(admit, chat() | {"messages": [{"role": "assistant", "tool_calls": [call(deep)]}]})

        assert (error.reason, error.param) == (
            Reason.INVALID_REQUEST,
            "messages[0].tool_calls[0].function.arguments",
        )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [tool()]}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [call("{}")]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "tool_call_id": "a", "content": "b"}]}, "messages[0]"),
    ],
)
def test_tools_the_template_would_hide_are_refused(
    admit: Make, chat: Make, checkpoint_path: Path, tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    from distill.miniature.processor import CHAT_TEMPLATE

    path = Path(shutil.copytree(checkpoint_path, tmp_path / "student"))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    error = refusal(admit, chat() | body, checkpoint=path)

    assert (error.reason, error.param) == (Reason.UNSUPPORTED_PARAMETER, param)
