"""Answers of the engine in the form of Responses, held against the official client's own types."""

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from server.errors import EngineUnavailableError, GatewayError, Reason
from server.responses.answer import ResponsesForm

EVENT = TypeAdapter[Any](ResponseStreamEvent)
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 2, "image_tokens": 4, "text_tokens": 5},
}
LOGPROB = {
    "token": "a",
    "logprob": -1.0,
    "bytes": None,
    "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}],
}
CALL = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"a"'}}


def form(**values: Any) -> ResponsesForm:
    return ResponsesForm({"model": "tiny"} | values)


def without_extras(value: BaseModel) -> None:
    """No field is there that the official type does not know, but for usage, where OpenAI's own servers add some."""
    for name, child in value:
        if name != "usage":
            for item in child if isinstance(child, list) else [child]:
                if isinstance(item, BaseModel):
                    without_extras(item)
    # OpenAI's servers send `store`, which the client's type lacks.
    assert set(value.model_extra or ()) <= {"store"}, type(value)


def read_events(stream: bytes) -> list[Any]:
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        event = EVENT.validate_python(value)
        without_extras(event)
        events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def run(form: ResponsesForm, *deltas: dict[str, Any], finish_reason: str = "stop") -> list[Any]:
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks += [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]},
        {"choices": [], "usage": USAGE},
    ]
    return read_events(form.opening() + b"".join(form.chunk(chunk) for chunk in chunks) + form.closing())


def whole(message: dict[str, Any], finish_reason: str = "stop", **choice: Any) -> Response:
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason} | choice], "usage": USAGE}
    response = Response.model_validate(form().whole(answer))
    without_extras(response)
    return response


def test_a_stream_of_text_tells_every_step() -> None:
    events = run(form(), {"role": "assistant", "content": ""}, {"content": "he"}, {"content": "llo"})

    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["he", "llo"]
    response = events[-1].response
    assert (response.status, response.output_text, response.store) == ("completed", "hello", False)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (9, 4)
    assert response.usage.input_tokens_details.model_dump()["image_tokens"] == 4


def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    events = run(
        form(),
        {"reasoning": "hm"},
        {"content": "I look."},
        {"tool_calls": [CALL]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {"tool_calls": [CALL | {"index": 1, "id": "call_2"}]},
        finish_reason="tool_calls",
    )

    response = events[-1].response
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.output[0].content[0].text == "hm"
    assert response.output_text == "I look."
    assert [(call.call_id, call.name, call.arguments) for call in response.output[2:]] == [
        ("call_1", "weather", '{"a":1}'),
        ("call_2", "weather", '{"a"'),
    ]
    assert [event.output_index for event in events if event.type == "response.output_item.done"] == [0, 1, 2, 3]
    assert len({item.id for item in response.output}) == 4


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_cut_short_is_incomplete(reason: str, told: str) -> None:
    event = run(form(), {"content": "a"}, finish_reason=reason)[-1]

    assert event.type == "response.incomplete"
    assert event.response.incomplete_details.reason == told
    assert event.response.output[0].status == "incomplete"
    assert whole({"content": "a"}, reason).incomplete_details == event.response.incomplete_details


def test_an_empty_answer_is_an_empty_message() -> None:
    for response in (run(form())[-1].response, whole({"content": None})):
        assert (response.status, len(response.output), response.output_text) == ("completed", 1, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineUnavailableError(5), "server_error"), (GatewayError(400, Reason.ENGINE_REFUSED, "no"), "invalid_prompt")],
)
def test_an_error_inside_the_stream_ends_it(error: GatewayError, code: str) -> None:
    made = form()
    stream = made.opening() + made.chunk({"choices": [{"delta": {"content": "a"}}]}) + made.failed(error)

    event = read_events(stream + made.closing())[-1]

    assert event.type == "response.failed"
    assert (event.response.status, event.response.error.code) == ("failed", code)
    assert event.response.error.message == error.message


def test_log_probabilities_are_carried_over() -> None:
    logprobs = {"content": [LOGPROB]}
    made = form()
    events = read_events(
        made.opening()
        + made.chunk({"choices": [{"delta": {"content": "a"}, "logprobs": logprobs, "finish_reason": "stop"}]})
        + made.closing()
    )

    assert events[4].logprobs[0].top_logprobs[0].token == "a"
    for response in (events[-1].response, whole({"content": "a"}, logprobs=logprobs)):
        assert response.output[0].content[0].logprobs[0].bytes == []


def test_the_request_is_repeated_in_the_answer() -> None:
    tool = {"type": "function", "name": "weather"}
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    values = {"instructions": "i", "metadata": {"a": "b"}, "tools": [tool], "text": {"format": schema}, "top_p": 0.5}

    response = run(form(**values, reasoning={"effort": "low"}, tool_choice="required"))[-1].response

    assert (response.instructions, response.metadata, response.top_p) == ("i", {"a": "b"}, 0.5)
    assert (response.tools[0].name, response.text.format.name, response.reasoning.effort) == ("weather", "x", "low")
    assert (response.tool_choice, response.previous_response_id) == ("required", None)
