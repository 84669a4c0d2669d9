"""Function tools: their shape, and the form in which the engine hands them to the chat template."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec


class Function(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema; the engine checks it."""
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """One tool; there are none but functions."""

    function: Function
    type: Literal["function"] = "function"


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """Which function was called, with what."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """One call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


def template_tool(tool: Tool) -> dict[str, Any]:
    """A tool as the chat template gets it (vLLM's `ChatCompletionToolsParam.model_dump`)."""
    function = tool.function
    rendered: dict[str, Any] = {
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
    }
    if function.strict is not None:
        rendered["strict"] = function.strict
    return {"type": "function", "function": rendered}


def template_tool_call(call: ToolCall) -> dict[str, Any]:
    """A call as the chat template gets it, its arguments decoded (vLLM's `chat_utils._postprocess_messages`)."""
    function = {"name": call.function.name, "arguments": read_arguments(call.function.arguments)}
    return {"id": call.id, "function": function, "type": "function"}


def read_arguments(text: str) -> dict[str, Any]:
    """A call's arguments; what is no JSON object counts as none, as in the engine.

    Raises:
        RecursionError: nested too deeply.
    """
    try:
        # The engine's own parser: it takes NaN, and numbers of up to 4,300 digits.
        arguments = json.loads(text) if text else {}
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def walk_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from walk_strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from walk_strings(child)
