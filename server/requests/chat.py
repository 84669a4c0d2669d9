"""The body of `/v1/chat/completions` as a draft."""

from collections.abc import Mapping
from typing import Any

from server.requests.conversation import Conversation, Message
from server.requests.decoding import (
    BodyDecoder,
    check_amounts,
    check_messages,
    decode_messages,
    decode_parameters,
    decode_tools,
)
from server.requests.draft import Draft
from server.requests.parameters import ALLOWED, REFUSED, Parameters, check_model, check_names, read_parameters
from server.settings import Settings

BODY = BodyDecoder(ALLOWED, content="messages", kind=list[Message])


def parse_chat(body: bytes, settings: Settings) -> Draft:
    """Names, values and shape, cheapest first.

    Raises:
        GatewayError: the first thing wrong.
    """
    raw = BODY.split(body)
    check_names(raw, REFUSED, ALLOWED, settings.allowed_parameters)
    parameters = read_parameters(decode_parameters(raw, settings, content="messages"), max_choices=settings.max_choices)
    check_model(parameters, settings.model)
    conversation = Conversation(
        messages=decode_messages(raw.get("messages")), name="messages", tools=decode_tools(raw.get("tools"))
    )
    check_messages(conversation)
    check_amounts(conversation, settings)
    return Draft(
        parameters=parameters,
        conversation=conversation,
        engine_parameters=engine_parameters(raw, parameters),
    )


def engine_parameters(raw: Mapping[str, Any], parameters: Parameters) -> dict[str, Any]:
    """What the engine is asked beside the messages: the client's own JSON."""
    passed: dict[str, Any] = {name: value for name, value in raw.items() if name != "messages"}
    if parameters.stream and not parameters.include_usage:
        # Every count is checked by the engine's usage, asked for or not.
        passed["stream_options"] = {"include_usage": True}
    return passed
