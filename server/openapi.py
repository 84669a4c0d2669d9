"""The gateway's OpenAPI document: what FastAPI cannot see, since bodies are read by the gateway itself."""

from collections.abc import Collection
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.errors import Reason
from server.requests.conversation import Message
from server.requests.parameters import ALLOWED, ALLOWED_IN_COMPLETIONS, StreamOptions
from server.requests.tools import Tool
from server.responses.items import Item
from server.responses.request import NEUTRAL, PASSED, TRANSLATED, FunctionTool, Reasoning, Text
from server.routes.chat import CHAT
from server.routes.completions import COMPLETIONS
from server.routes.input_tokens import CHAT_INPUT_TOKENS, INPUT_TOKENS
from server.routes.responses import RESPONSES
from server.settings import Settings

REF = "#/components/schemas/{name}"
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"enum": [reason.value for reason in Reason]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
OBJECT = {"type": "object"}
INPUT_TOKENS_ANSWER = {
    "type": "object",
    "properties": {"object": {"type": "string"}, "input_tokens": {"type": "integer"}, "images": {"type": "array"}},
    "required": ["object", "input_tokens", "text_tokens", "image_tokens", "images", "fits", "policy"],
}
_INTEGER, _NUMBER, _STRING = {"type": ["integer", "null"]}, {"type": ["number", "null"]}, {"type": ["string", "null"]}
_COUNT = {"type": ["integer", "null"], "minimum": 1}
_TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT = {"anyOf": [{"type": "string"}, _TOKENS]}
_KNOWN: dict[str, Any] = {
    "stream": {"type": ["boolean", "null"]},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "top_k": _INTEGER,
    "n": _COUNT,
    "seed": _INTEGER,
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "max_output_tokens": _COUNT,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "instructions": _STRING,
    "user": _STRING,
    "metadata": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    "prompt": {"anyOf": [*_PROMPT["anyOf"], {"type": "array", "minItems": 1, "items": _PROMPT}]},
}


def document(app: FastAPI, settings: Settings) -> None:
    """Gives the app a document that has its bodies, its errors and its streams."""
    schemas, components = _schemas(settings)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            made.setdefault("components", {}).setdefault("schemas", {}).update(components)
            for path, operations in made["paths"].items():
                for operation in operations.values():
                    _describe(operation, path, schemas)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(operation: dict[str, Any], path: str, schemas: dict[str, dict[str, Any]]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    error = {"schema": {"$ref": REF.format(name="Error")}}
    responses["default"] = {"description": "An error in OpenAI's form.", "content": {"application/json": error}}
    if path not in schemas:
        return
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[path]}}}
    counts_only = path in (INPUT_TOKENS, CHAT_INPUT_TOKENS)
    content: dict[str, Any] = {"application/json": {"schema": INPUT_TOKENS_ANSWER if counts_only else OBJECT}}
    if not counts_only:
        content["text/event-stream"] = {}
    responses["200"] = {"description": "The answer; with `stream` its events.", "content": content}


def _schemas(settings: Settings) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The schema of each route's body, and what they refer to."""
    kinds = (list[Message], list[Tool], list[Item], list[FunctionTool], StreamOptions, Reasoning, Text)
    made, components = msgspec.json.schema_components(kinds, ref_template=REF)
    messages, tools, items, function_tools, stream_options, reasoning, text = made
    known = _KNOWN | {"model": {"enum": [settings.model]}, "stream_options": _or_null(stream_options)}
    chat = _body(ALLOWED, known | {"messages": messages, "tools": _or_null(tools)}, "messages")
    completions = _body(ALLOWED_IN_COMPLETIONS, known, "prompt")
    translated = {
        "input": {"anyOf": [{"type": "string"}, items]},
        "tools": _or_null(function_tools),
        "reasoning": _or_null(reasoning),
        "text": _or_null(text),
        "stream_options": {},
    }
    neutral = {name: {"enum": [None, *values]} for name, (values, _) in NEUTRAL.items()}
    responses = _body(PASSED | TRANSLATED | NEUTRAL.keys(), known | neutral | translated, "input")
    bodies = {
        CHAT: chat,
        CHAT_INPUT_TOKENS: chat,
        COMPLETIONS: completions,
        RESPONSES: responses,
        INPUT_TOKENS: responses,
    }
    return bodies, {**components, "Error": ERROR}


def _body(names: Collection[str], known: dict[str, Any], content: str) -> dict[str, Any]:
    """Parameters without an entry in `known` are checked by the engine."""
    properties = {name: known.get(name, {}) for name in sorted(names)}
    return {
        "type": "object",
        "properties": properties,
        "required": ["model", content],
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
