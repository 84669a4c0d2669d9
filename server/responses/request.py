"""The body of `/v1/responses` as a draft: translated into chat, which every engine answers without keeping state.

vLLM has this route too, but its images carry no hash of the gateway's there, and what it stores lives in one engine.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from server.errors import BadRequestError, Reason
from server.requests.conversation import Conversation, Message, Place
from server.requests.decoding import (
    BodyDecoder,
    check_amounts,
    check_messages,
    decode_any,
    decode_as,
    decode_parameters,
)
from server.requests.draft import Draft
from server.requests.parameters import LABELS, SAMPLING, check_model, check_names, read_parameters
from server.requests.tools import Function, Tool
from server.responses.answer import ResponsesForm
from server.responses.items import Item, ItemReader
from server.settings import Settings

T = TypeVar("T")

# Passed to the engine under the same name.
PASSED = SAMPLING | LABELS | {"model", "stream", "parallel_tool_calls"}
TRANSLATED = frozenset(
    {
        "input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens", "top_logprobs",
        "include",
    }
)  # fmt: skip

_STATE = "answers are not kept; send the whole conversation as 'input'"
# Accepted with these values only, which ask for nothing.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "store": ((False,), f"{_STATE}, and leave 'store' out or send false"),
    "previous_response_id": ((), _STATE),
    "conversation": ((), _STATE),
    "prompt": ((), "prompts are not kept here; send 'instructions' and 'input'"),
    "background": ((False,), "answers are not kept; ask with 'stream' or wait"),
    "truncation": (("disabled",), "input is never shortened; send less"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "max_tool_calls": ((), "there are no built-in tools to call"),
    "context_management": ((), "input is never shortened; send less"),
    "prompt_cache_retention": (("in_memory",), "how long prompts are cached is the engine's to decide"),
    "stream_options": (({}, {"include_obfuscation": False}), "events are not padded"),
}
REFUSED = {
    "messages": "it belongs to /v1/chat/completions; send 'input'",
    "max_tokens": "it belongs to /v1/chat/completions; send 'max_output_tokens'",
    "max_completion_tokens": "it belongs to /v1/chat/completions; send 'max_output_tokens'",
    "response_format": "it belongs to /v1/chat/completions; send 'text.format'",
    "reasoning_effort": "it belongs to /v1/chat/completions; send 'reasoning.effort'",
    "n": "a response has one answer; send several requests",
    "moderation": "there is no moderation",
}
INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")
"""Reasoning is always answered in plain text, so that nothing encrypted is needed to send it back."""


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    """`text.format`."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class Text(msgspec.Struct, forbid_unknown_fields=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    """`reasoning`."""

    effort: str | None = None
    summary: None = None
    generate_summary: None = None


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool, whose fields are not in an object of their own here."""

    name: str
    type: str = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


BODY = BodyDecoder(PASSED | TRANSLATED | NEUTRAL.keys(), content="input", kind=str | list[Item])


def parse_responses(body: bytes, settings: Settings) -> Draft:
    """Names, values and shape, cheapest first.

    Raises:
        GatewayError: the first thing wrong.
    """
    raw = BODY.split(body)
    check_names(raw, REFUSED, PASSED, TRANSLATED, frozenset(NEUTRAL), settings.allowed_parameters)
    values = decode_parameters(raw, settings, content="input")
    values = {name: value for name, value in values.items() if value is not None}
    _check_neutral(values)
    _check_labels(values)
    asked = {name: value for name, value in values.items() if name != "stream_options"} | _reasoning(values)
    parameters = read_parameters(asked, max_choices=1, max_tokens_names=("max_output_tokens",))
    check_model(parameters, settings.model)
    conversation = _read_conversation(raw, values)
    check_amounts(conversation, settings)
    passed: dict[str, Any] = {name: raw[name] for name in values if name in PASSED | settings.allowed_parameters}
    return Draft(
        parameters=parameters,
        conversation=conversation,
        engine_parameters=passed | _translate(values, conversation),
        form=ResponsesForm(values),
    )


def _check_neutral(values: dict[str, Any]) -> None:
    for name, (neutral, reason) in NEUTRAL.items():
        if name in values and values[name] not in neutral:
            raise BadRequestError(
                Reason.UNSUPPORTED_PARAMETER, f"Parameter {name!r} is not accepted: {reason}.", param=name
            )


def _check_labels(values: dict[str, Any]) -> None:
    """The answer repeats them, so their types matter."""
    _convert(dict[str, str], values.get("metadata", {}), "metadata")
    for name in LABELS - {"metadata"}:
        _convert(str, values.get(name, ""), name)


def _read_conversation(raw: Mapping[str, Any], values: dict[str, Any]) -> Conversation:
    reader = ItemReader()
    if (instructions := values.get("instructions")) is not None:
        if not isinstance(instructions, str):
            raise BadRequestError(Reason.INVALID_REQUEST, "instructions: expected str.", param="instructions")
        reader.add(Message(role="system", content=instructions), Place("instructions", "instructions"))
    source = raw.get("input")
    if source is None:
        raise BadRequestError(Reason.INVALID_REQUEST, "Parameter 'input' is missing.", param="input")
    if isinstance(source, msgspec.Raw):
        is_text = bytes(memoryview(source)[:1]) == b'"'
        source = decode_any(source, "input") if is_text else _decode_items(source)
    if isinstance(source, str):
        reader.add(Message(role="user", content=source), Place("input", "input"))
    else:
        reader.read(source)
    conversation = Conversation(
        messages=reader.messages, name="input", places=tuple(reader.places), tools=_read_tools(values)
    )
    check_messages(conversation)
    return conversation


def _decode_items(source: msgspec.Raw) -> list[Item]:
    try:
        return decode_as(list[Item], source, "input")
    except BadRequestError as error:
        if error.param is None or not error.param.endswith("].type"):
            raise
        raise BadRequestError(
            error.reason,
            f"{error.message} Served are messages of text and images, function calls, their outputs, and reasoning, "
            "each in full.",
            param=error.param,
        ) from None


def _read_tools(values: dict[str, Any]) -> list[Tool] | None:
    tools = []
    # An empty list is what this API's clients send for "no tools".
    for i, value in enumerate(values.get("tools") or ()):
        kind = value.get("type") if isinstance(value, dict) else None
        if kind != "function":
            raise BadRequestError(
                Reason.UNSUPPORTED_PARAMETER,
                f"tools[{i}]: there are no built-in tools; run it in your own program and send it as a function.",
                param=f"tools[{i}].type",
            )
        tool = _convert(FunctionTool, value, f"tools[{i}]")
        function = Function(
            name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        )
        tools.append(Tool(function=function))
    return tools or None


def _translate(values: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """The parameters that chat has under other names or in another shape."""
    passed: dict[str, Any] = _reasoning(values) | _response_format(values)
    if conversation.tools is not None:
        passed["tools"] = conversation.tools
        passed["tool_choice"] = _tool_choice(values.get("tool_choice", "auto"))
    if "max_output_tokens" in values:
        passed["max_completion_tokens"] = values["max_output_tokens"]
    if values.get("stream"):
        passed["stream_options"] = {"include_usage": True}
    return passed | _logprobs(values)


def _logprobs(values: dict[str, Any]) -> dict[str, Any]:
    include = values.get("include", [])
    if not isinstance(include, list) or any(name not in INCLUDABLE for name in include):
        raise BadRequestError(
            Reason.UNSUPPORTED_PARAMETER, f"include: expected any of {', '.join(INCLUDABLE)}.", param="include"
        )
    if INCLUDABLE[0] not in include and "top_logprobs" not in values:
        return {}
    return {"logprobs": True, "top_logprobs": values.get("top_logprobs", 0)}


def _reasoning(values: dict[str, Any]) -> dict[str, Any]:
    reasoning = _convert(Reasoning, values.get("reasoning", {}), "reasoning")
    return {} if reasoning.effort is None else {"reasoning_effort": reasoning.effort}


def _response_format(values: dict[str, Any]) -> dict[str, Any]:
    text = _convert(Text, values.get("text", {}), "text")
    if text.verbosity not in (None, "medium"):
        raise BadRequestError(
            Reason.UNSUPPORTED_PARAMETER, "text.verbosity: the model has no such control.", param="text.verbosity"
        )
    form = text.format
    if form is None or form.type == "text":
        return {}
    if form.type == "json_object":
        return {"response_format": {"type": "json_object"}}
    if form.type != "json_schema" or form.name is None or form.schema is None:
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            "text.format: expected type 'text', 'json_object', or 'json_schema' with 'name' and 'schema'.",
            param="text.format",
        )
    optional = {"strict": form.strict, "description": form.description}
    schema = {"name": form.name, "schema": form.schema} | {k: v for k, v in optional.items() if v is not None}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tool_choice(choice: Any) -> Any:
    if choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, dict) and choice.keys() == {"type", "name"} and choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    raise BadRequestError(
        Reason.UNSUPPORTED_PARAMETER,
        "tool_choice: expected 'none', 'auto', 'required' or {'type': 'function', 'name': ...}.",
        param="tool_choice",
    )


def _convert(kind: type[T], value: Any, name: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path = name + where.rstrip("`")
        raise BadRequestError(Reason.INVALID_REQUEST, f"{path}: {what}.", param=path) from None
