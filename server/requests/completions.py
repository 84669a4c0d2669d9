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
    check_names(raw, REFUSED_IN_COMPLETIONS, ALLOWED_IN_COMPLETIONS, settings.allowed_parameters)
    values = decode_parameters(raw, settings, content="prompt")
    parameters = read_parameters({"max_tokens": DEFAULT_MAX_TOKENS} | values, max_choices=settings.max_choices)
    check_model(parameters, settings.model)
    prompts = _read_prompts(raw.get("prompt"), settings.max_prompts)
    conversation = Conversation(messages=[], name="prompt", prompts=prompts)
    check_amounts(conversation, settings)
    return Draft(
        parameters=parameters,
        conversation=conversation,
        engine_parameters=engine_parameters(raw, parameters),
        engine_path="/v1/completions",
    )


def _read_prompts(raw: msgspec.Raw | None, max_prompts: int) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    value = None if raw is None else decode_any(raw, "prompt")
    is_one = isinstance(value, str) or (isinstance(value, list) and bool(value) and _is_token(value[0]))
    prompts = [value] if is_one else value
    if not isinstance(prompts, list) or not prompts or not all(map(_is_prompt, prompts)):
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            "prompt: expected a text, a list of token ids, or a list of several of these; none of them empty.",
            param="prompt",
        )
    if len(prompts) > max_prompts:
        raise BadRequestError(
            Reason.INVALID_REQUEST, f"prompt: {len(prompts)} prompts, expected at most {max_prompts}.", param="prompt"
        )
    return prompts


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(map(_is_token, value)))


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
