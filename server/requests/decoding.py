"""Takes a request's JSON apart under limits, so that odd JSON can neither cost much nor reach the engine."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from server.errors import BadRequestError, GatewayError, Reason
from server.requests.conversation import Conversation, Message
from server.requests.tools import Tool, ToolCall, read_arguments
from server.settings import Settings

T = TypeVar("T")

MAX_ARGUMENTS_DEPTH = 32
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class BodyDecoder:
    """Takes a route's bodies apart in one pass over their bytes, which a hundred images make many millions."""

    def __init__(self, names: frozenset[str], *, content: str, kind: Any) -> None:
        """
        Args:
            names: all parameters of the route.
            content: the one of them that holds the prompt.
            kind: its type.
        """
        types = {name: kind if name == content else msgspec.Raw for name in sorted(names)}
        fields = [(name, type_ | msgspec.UnsetType, msgspec.UNSET) for name, type_ in types.items()]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Body", fields, forbid_unknown_fields=True))
        self._names = tuple(types)

    def split(self, body: bytes) -> Mapping[str, Any]:
        """The body's parameters by name: the prompt's decoded, each other one still as JSON.

        Where anything is wrong, or has a name that only the settings allow, the prompt's is JSON too, for what is
        done with each then names it.

        Raises:
            BadRequestError: not a JSON object.
        """
        try:
            found = self._decoder.decode(body)
        except MALFORMED:
            return split_body(body)
        return {name: value for name in self._names if (value := getattr(found, name)) is not msgspec.UNSET}


def split_body(body: bytes) -> dict[str, msgspec.Raw]:
    """The body's parameters by name, each still as JSON; of two equal names the last counts, as for the engine.

    Raises:
        BadRequestError: not a JSON object.
    """
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise BadRequestError(Reason.INVALID_JSON, "The body must be a JSON object.") from None
    except MALFORMED as error:
        raise BadRequestError(Reason.INVALID_JSON, f"The body is not valid JSON: {_trouble(error)}") from None


def decode_parameters(raw: Mapping[str, Any], settings: Settings, *, content: str) -> dict[str, Any]:
    """Every parameter but `content`, the one that holds the prompt and has limits of its own.

    Raises:
        GatewayError: over the limits on bytes or depth, or malformed; names the parameter.
    """
    parts = {name: value for name, value in raw.items() if name != content}
    total = sum(len(memoryview(value)) for value in parts.values())
    if total > settings.max_parameter_bytes:
        raise GatewayError(
            413,
            Reason.BODY_TOO_LARGE,
            f"The parameters take {total} bytes, expected at most {settings.max_parameter_bytes}.",
        )
    values = {}
    for name, value in parts.items():
        values[name] = decode_any(value, name)
        if _deeper_than(values[name], settings.max_json_depth):
            raise BadRequestError(
                Reason.INVALID_JSON, f"{name}: nested more than {settings.max_json_depth} levels deep.", param=name
            )
    return values


def decode_any(raw: msgspec.Raw, name: str) -> Any:
    """A parameter's JSON, whatever it is.

    Raises:
        BadRequestError: malformed; names the parameter.
    """
    try:
        return msgspec.json.decode(raw)
    except MALFORMED as error:
        raise BadRequestError(Reason.INVALID_JSON, f"{name}: {_trouble(error)}", param=name) from None


def decode_messages(raw: msgspec.Raw | list[Message] | None) -> list[Message]:
    """The messages, in the only shape that is served, if they are not decoded already.

    Raises:
        BadRequestError: missing, malformed or misshapen; names the path.
    """
    if raw is None:
        raise BadRequestError(Reason.INVALID_REQUEST, "Parameter 'messages' is missing.", param="messages")
    return raw if isinstance(raw, list) else decode_as(list[Message], raw, "messages")


def decode_as(kind: type[T], raw: msgspec.Raw, name: str) -> T:
    """A parameter's JSON as a type.

    Raises:
        BadRequestError: malformed or misshapen; names the path.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        # msgspec says: Expected `str`, got `int` - at `$[0].role`
        what, _, where = str(error).partition(" - at `$")
        path = name + where.rstrip("`")
        raise BadRequestError(Reason.INVALID_REQUEST, f"{path}: {what}.", param=path) from None
    except MALFORMED as error:
        raise BadRequestError(Reason.INVALID_JSON, f"{name}: {_trouble(error)}", param=name) from None


def check_messages(conversation: Conversation) -> None:
    """Holds each message's fields against its role.

    Raises:
        BadRequestError: a field is missing or does not belong there; names the path.
    """
    for place, message in conversation.walk():
        _check_role(message, place.message)


def _check_role(message: Message, place: str) -> None:
    if (message.role == "tool") != (message.tool_call_id is not None):
        path = f"{place}.tool_call_id"
        raise BadRequestError(
            Reason.INVALID_REQUEST, f"{path}: belongs to messages of role 'tool', and to each of them.", param=path
        )
    if message.tool_calls is not None and message.role != "assistant":
        path = f"{place}.tool_calls"
        raise BadRequestError(
            Reason.INVALID_REQUEST, f"{path}: belongs to messages of role 'assistant' only.", param=path
        )
    for j, call in enumerate(message.tool_calls or ()):
        check_arguments(call, f"{place}.tool_calls[{j}].function.arguments")


def check_arguments(call: ToolCall, path: str) -> None:
    """Refuses a call's arguments that the engine could not read.

    Raises:
        BadRequestError: nested too deeply; names the path.
    """
    try:
        too_deep = _deeper_than(read_arguments(call.function.arguments), MAX_ARGUMENTS_DEPTH)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise BadRequestError(
            Reason.INVALID_REQUEST, f"{path}: nested more than {MAX_ARGUMENTS_DEPTH} levels deep.", param=path
        )


def decode_tools(raw: msgspec.Raw | None) -> list[Tool] | None:
    """The function tools.

    Raises:
        BadRequestError: misshapen, or an empty list; names the path.
    """
    tools = None if raw is None else decode_as(list[Tool] | None, raw, "tools")  # type: ignore[arg-type]
    if tools == []:
        raise BadRequestError(Reason.INVALID_REQUEST, "tools: empty, expected a tool or no 'tools'.", param="tools")
    return tools


def check_amounts(conversation: Conversation, settings: Settings) -> None:
    """Holds a conversation against the limits on its parts, and images against the shape of their URLs.

    Raises:
        BadRequestError: names what there is too much of, or the path.
    """
    messages = conversation.messages
    num_parts = sum(len(message.parts()) for message in messages)
    num_characters = sum(len(text) for _, text in conversation.texts())
    for name, value, low, high in (
        ("messages", len(messages), 0 if conversation.prompts else 1, settings.max_messages),
        ("content parts", num_parts, 0, settings.max_parts),
        ("characters of text", num_characters, 0, settings.max_text_characters),
    ):
        if not low <= value <= high:
            raise BadRequestError(
                Reason.INVALID_REQUEST, f"{value} {name}, expected {low} to {high}.", param=conversation.name
            )
    for source in conversation.images():
        if memoryview(source.part.image_url.url)[0] != ord('"'):
            path = f"{source.path}.url"
            raise BadRequestError(Reason.INVALID_REQUEST, f"{path}: Expected `str`.", param=path)


def _trouble(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply."
    return "not valid UTF-8." if isinstance(error, UnicodeDecodeError) else f"{error}."


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        containers = [node for node in level if isinstance(node, dict | list)]
        if not containers:
            return False
        level = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]
    return any(isinstance(node, dict | list) for node in level)
