"""The body of `/v1/completions` as a draft."""

from typing import Any

import msgspec

from server.errors import BadRequestError, Reason
from server.requests.chat import engine_parameters
from server.requests.conversation import Conversation
from server.requests.decoding import check_amounts, decode_any, decode_parameters, split_body
from server.requests.draft import Draft
from server.requests.parameters import (
    ALLOWED_IN_COMPLETIONS,
    REFUSED_IN_COMPLETIONS,
    check_model,
    check_names,
    read_parameters,
)
from server.settings import Settings

DEFAULT_MAX_TOKENS = 16
"""What the engine, as OpenAI, takes for a missing `max_tokens`."""


def parse_completions(body: bytes, settings: Settings) -> Draft:
    """Names, values and shape, cheapest first.

    Raises:
        GatewayError: the first thing wrong.
    """
    raw = split_body(body)
    check_names(set(raw), ALLOWED_IN_COMPLETIONS | settings.allowed_parameters, REFUSED_IN_COMPLETIONS)
    values = decode_parameters(raw, settings, content="prompt")
    parameters = read_parameters({"max_tokens": DEFAULT_MAX_TOKENS} | values, max_choices=settings.max_choices)
    check_model(parameters, settings.model)
    conversation = Conversation(messages=[], name="prompt", prompt=_read_prompt(raw.get("prompt")))
    check_amounts(conversation, settings)
    return Draft(
        parameters=parameters,
        conversation=conversation,
        engine_parameters=engine_parameters(raw, parameters) | {"prompt": conversation.prompt},
        engine_path="/v1/completions",
    )


def _read_prompt(raw: msgspec.Raw | None) -> str | list[int]:
    """One prompt: a text, token ids, or a list of one of these."""
    prompt = None if raw is None else decode_any(raw, "prompt")
    if isinstance(prompt, list) and prompt and not _is_token(prompt[0]):
        if len(prompt) > 1:
            raise BadRequestError(
                Reason.INVALID_REQUEST,
                f"prompt: {len(prompt)} prompts, expected one; send a request for each.",
                param="prompt",
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(_is_token(token) for token in prompt):
        return prompt
    raise BadRequestError(
        Reason.INVALID_REQUEST, "prompt: expected a text or a list of token ids, not empty.", param="prompt"
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
