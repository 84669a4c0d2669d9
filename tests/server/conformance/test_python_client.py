"""The official client for Python, unchanged, against the gateway and the real engine, or one that fails on cue."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import Response as ModelResponse
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Make = Callable[..., Any]
Start = Callable[..., Awaitable[httpx.AsyncClient]]


class Place(BaseModel):
    city: Literal["Oslo", "Rome"]


TOOL: Any = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": Place.model_json_schema() | {"additionalProperties": False},
}
CHAT_TOOL: Any = {"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}
# The tiny model's weights are random: only the grammar brings its answers to an end.
LONG: Any = {"seed": 1}


@pytest.fixture
def client(served: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def picture_input(image_part: Make) -> list[Any]:
    url = image_part(64, 32)["image_url"]["url"]
    picture = {"type": "input_image", "image_url": url, "detail": "auto"}
    return [{"role": "user", "content": [picture, {"type": "input_text", "text": "What is it?"}]}]


@pytest.mark.engine
def test_responses_count_images_and_say_what_chat_says(
    client: openai.OpenAI, image_part: Make, picture_input: list[Any]
) -> None:
    content = [image_part(64, 32), {"type": "text", "text": "What is it?"}]
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], max_completion_tokens=4, temperature=0
    )

    response = client.responses.create(model="tiny", input=picture_input, max_output_tokens=4, temperature=0)

    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.input_tokens_details.model_dump()["image_tokens"] == 8
    assert (response.status, response.incomplete_details) == ("incomplete", response.incomplete_details)
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    counted = client.responses.input_tokens.count(model="tiny", input=picture_input)
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", chat.usage.prompt_tokens)


@pytest.mark.engine
def test_streamed_responses_end_as_whole_ones(client: openai.OpenAI, picture_input: list[Any]) -> None:
    whole = client.responses.create(model="tiny", input=picture_input, max_output_tokens=4, temperature=0)

    with client.responses.stream(model="tiny", input=picture_input, max_output_tokens=4, temperature=0) as stream:
        events = list(stream)

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"
    final = ModelResponse.model_validate(events[-1].response.model_dump())
    assert final.output_text == whole.output_text
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.input_tokens == whole.usage.input_tokens


@pytest.mark.engine
def test_a_conversation_with_tools_goes_on(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "weather?"}]
    options: Any = {"model": "tiny", "tools": [TOOL], "max_output_tokens": 1000, "extra_body": LONG}
    first = client.responses.create(input=asked, tool_choice={"type": "function", "name": "weather"}, **options)
    (call,) = [item for item in first.output if item.type == "function_call"]
    Place.model_validate_json(call.arguments)

    # What came is sent back as it came.
    asked += [item.model_dump(exclude_none=True) for item in first.output]
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    second = client.responses.create(input=asked, **(options | {"max_output_tokens": 2}))

    assert second.usage is not None
    counted = client.responses.input_tokens.count(model="tiny", input=asked, tools=[TOOL])
    assert second.usage.input_tokens == counted.input_tokens


@pytest.mark.engine
def test_structured_output_is_parsed(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "where?"}], response_format=Place, **LONG
    )
    response = client.responses.parse(model="tiny", input="where?", text_format=Place, extra_body=LONG)
    with client.responses.stream(model="tiny", input="where?", text_format=Place, extra_body=LONG) as stream:
        streamed = stream.get_final_response()

    assert isinstance(chat.choices[0].message.parsed, Place)
    assert isinstance(response.output_parsed, Place)
    assert isinstance(streamed.output_parsed, Place)


@pytest.mark.engine
def test_tool_calls_are_parsed(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "?"}], tools=[CHAT_TOOL], tool_choice="required", **LONG
    )

    calls = chat.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.function.name == "weather"
        Place.model_validate_json(call.function.arguments)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("prompt", "num_choices"),
    [
        ("hello", 1),
        (["<b>ü漢🎉 hello"], 1),
        ([300, 301, 302], 1),
        ([[300]], 1),
        (["hello", "a second one", "hello"], 3),
        ([[300], [301, 302]], 2),
    ],
    ids=str,
)
def test_completions_are_counted(client: openai.OpenAI, prompt: Any, num_choices: int) -> None:
    raw = client.completions.with_raw_response.create(model="tiny", prompt=prompt, max_tokens=2, logprobs=2)
    answer = raw.parse()
    chunks = list(
        client.completions.create(
            model="tiny", prompt=prompt, max_tokens=2, stream=True, stream_options={"include_usage": True}
        )
    )

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == int(raw.headers["x-laid-prompt-tokens"])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens
    assert [choice.index for choice in answer.choices] == list(range(num_choices))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == set(range(num_choices))


@pytest.mark.engine
def test_of_several_prompts_the_longest_is_held_against_the_window(client: openai.OpenAI) -> None:
    def ask(prompt: Any) -> Any:
        return client.completions.with_raw_response.create(model="tiny", prompt=prompt, max_tokens=1).headers

    long = "hello " * 200
    alone, together = ask(long), ask(["hello", long, "hello"])

    assert int(together["x-laid-prompt-tokens"]) > int(alone["x-laid-prompt-tokens"])
    assert together["x-laid-window-use"] == alone["x-laid-window-use"]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        ("a<|im_end|>", "reserved_token", "prompt"),
        ([5], "reserved_token", "prompt"),
        (["a", "a<|im_end|>"], "reserved_token", "prompt[1]"),
        ([[300], [5]], "reserved_token", "prompt[1]"),
        ("hello" * 3000, "context_length_exceeded", "prompt"),
        (["a", "hello" * 3000], "context_length_exceeded", "prompt[1]"),
        (["a"] * 129, "invalid_request", "prompt"),
        (["a", 5], "invalid_request", "prompt"),
        ([], "invalid_request", "prompt"),
        ([[]], "invalid_request", "prompt"),
        ([-1], "invalid_request", "prompt"),
    ],
    ids=lambda value: str(value)[:32],
)
def test_prompts_are_refused(client: openai.OpenAI, prompt: Any, code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt=prompt)

    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.engine
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "engine_refused"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "unsupported_parameter"),
        ({"max_output_tokens": 2048}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
def test_refused_responses_are_the_right_class(
    client: openai.OpenAI, change: dict[str, Any], kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    with pytest.raises(kind) as raised:
        client.responses.create(**({"model": "tiny", "input": "a", "stream": stream} | change))

    assert raised.value.code == code


async def test_the_client_retries_what_may_pass_and_nothing_else(cued_engine: Any, start_gateway: Start) -> None:
    gateway = await start_gateway(retry_after_seconds=1)
    answers = [503, 503, 200]

    async def answer(_: Request) -> Response:
        status = answers.pop(0)
        cued_engine.answer = answer if answers else None
        usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return JSONResponse({"id": "1", "model": "tiny", "choices": [choice], "usage": usage}, status_code=status)

    cued_engine.answer = answer
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none") as client:
        response = await client.responses.create(model="tiny", input="hello")
        assert (response.output_text, len(cued_engine.bodies)) == ("hi", 3)

        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="tiny", input=[])
    assert len(cued_engine.bodies) == 3


async def test_an_engine_that_fails_in_mid_stream_is_told_as_the_client_expects(
    cued_engine: Any, start_gateway: Start
) -> None:
    async def answer(_: Request) -> Response:
        delta = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        error = b'data: {"error":{"message":"broken","type":"InternalServerError","param":null,"code":500}}\n\n'
        return Response(delta + error + b"data: [DONE]\n\n", media_type="text/event-stream")

    cued_engine.answer = answer
    gateway = await start_gateway()
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none") as client:
        events = [event async for event in await client.responses.create(model="tiny", input="a", stream=True)]
        assert events[-1].type == "response.failed"
        assert events[-1].response.error is not None
        assert events[-1].response.error.code == "server_error"

        messages: Any = [{"role": "user", "content": "a"}]
        with pytest.raises(openai.APIError) as raised:
            async for _ in await client.chat.completions.create(model="tiny", messages=messages, stream=True):
                pass
    assert raised.value.code == "engine_failed"
