"""Which parameters a request may carry, and why the others may not."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from server.errors import BadRequestError, GatewayError, Reason

T = TypeVar("T")

# OpenAI's and vLLM's own parameters of this request alone: passed to the engine, which checks their values.
SAMPLING = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
        "length_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens",
        "logit_bias", "bad_words", "allowed_token_ids", "logprob_token_ids", "structured_outputs",
        "repetition_detection", "thinking_token_budget", "skip_special_tokens", "spaces_between_special_tokens",
        "return_tokens_as_token_ids", "stream_interval",
    }
)  # fmt: skip
# Labels that OpenAI defines as having no influence on the answer.
LABELS = frozenset({"user", "safety_identifier", "prompt_cache_key", "metadata"})

ALLOWED = SAMPLING | LABELS | frozenset(
    {
        "messages", "model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "logprobs",
        "top_logprobs", "prompt_logprobs", "response_format", "reasoning_effort", "include_reasoning",
        "return_token_ids", "tools", "tool_choice", "parallel_tool_calls",
    }
)  # fmt: skip
ALLOWED_IN_COMPLETIONS = SAMPLING | LABELS | frozenset(
    {
        "prompt", "model", "stream", "stream_options", "n", "max_tokens", "logprobs", "prompt_logprobs",
        "response_format", "return_token_ids",
    }
)  # fmt: skip

_TEMPLATE = "it changes how prompts are rendered, and the count of their tokens"
_PROCESSOR = "it changes how the server processes images"
_INTERNAL = "it is for the server's own use"
_FUNCTIONS = "it is deprecated; send 'tools' and 'tool_choice'"

# Parameters that the engine knows and the gateway does not let through, with the reason given to the client.
REFUSED = {
    "chat_template": _TEMPLATE,
    "chat_template_kwargs": _TEMPLATE,
    "documents": _TEMPLATE,
    "add_special_tokens": _TEMPLATE,
    "add_generation_prompt": _TEMPLATE,
    "continue_final_message": _TEMPLATE,
    "echo": _TEMPLATE,
    "truncate_prompt_tokens": _TEMPLATE,
    "truncation_side": _TEMPLATE,
    "return_prompt_text": _TEMPLATE,
    "mm_processor_kwargs": _PROCESSOR,
    "media_io_kwargs": _PROCESSOR,
    "mm_payload": _PROCESSOR,
    "return_mm_kwargs": _PROCESSOR,
    "priority": "it would overtake other clients",
    "use_beam_search": "its cost is not bounded",
    "request_id": "the server gives each request its id",
    "session_id": _INTERNAL,
    "cache_salt": _INTERNAL,
    "kv_transfer_params": _INTERNAL,
    "ec_transfer_params": _INTERNAL,
    "vllm_xargs": _INTERNAL,
    "return_token_offsets": _INTERNAL,
    "routed_experts_prompt_start": _INTERNAL,
    "watermarking": _INTERNAL,
    "functions": _FUNCTIONS,
    "function_call": _FUNCTIONS,
    "audio": "only text is generated",
    "modalities": "only text is generated",
    "prediction": "the engine has no predicted outputs",
    "store": "answers are not stored",
    "service_tier": "there is one tier",
    "web_search_options": "there is no web search",
    "verbosity": "the model has no such control",
}
REFUSED_IN_COMPLETIONS = {
    **REFUSED,
    "best_of": "the engine has no such choice; send 'n'",
    "echo": "the prompt is not sent back",
    "suffix": "the engine does not fill in between two texts",
    "prompt_embeds": "embeddings are not taken as input",
    "messages": "it belongs to /v1/chat/completions",
    "tools": "they belong to /v1/chat/completions",
}
# What the operator may allow by the setting `allowed_parameters`; the others of the above would break the count of
# tokens, or are not there to be allowed.
ALLOWABLE = frozenset(
    {
        "priority", "use_beam_search", "cache_salt", "session_id", "kv_transfer_params", "ec_transfer_params",
        "vllm_xargs", "watermarking", "routed_experts_prompt_start",
    }
)  # fmt: skip


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options`, with vLLM's usage in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters that the gateway itself acts on."""

    model: str
    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    """Tokens asked for as the answer; None: as many as fit."""
    max_tokens_name: str
    reasoning_effort: str | None


def check_names(names: Collection[str], refused: Mapping[str, str], *allowed: frozenset[str]) -> None:
    """Refuses every parameter that is not allowed.

    Args:
        names: all that the request has.
        refused: known names that may not be there, each with the reason.
        allowed: names that may.

    Raises:
        BadRequestError: names the parameter, and the reason or the nearest known name.
    """
    for name in sorted(set(names).difference(*allowed)):
        if name in refused:
            raise BadRequestError(
                Reason.UNSUPPORTED_PARAMETER,
                f"Parameter {name!r} is not accepted: {refused[name]}.",
                param=name,
            )
        near = difflib.get_close_matches(name[:64], sorted(frozenset().union(*allowed)), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadRequestError(Reason.UNKNOWN_PARAMETER, f"Unknown parameter {name[:64]!r}.{hint}", param=name[:64])


def check_allowable(names: frozenset[str]) -> frozenset[str]:
    """The setting `allowed_parameters`, checked.

    Raises:
        ValueError: one of them cannot be allowed.
    """
    for name in sorted(names - ALLOWABLE):
        reason = f": {REFUSED[name]}" if name in REFUSED else ""
        raise ValueError(f"{name!r} cannot be allowed{reason}; expected any of {', '.join(sorted(ALLOWABLE))}")
    return names


def read_parameters(
    values: dict[str, Any],
    *,
    max_choices: int,
    max_tokens_names: tuple[str, ...] = ("max_completion_tokens", "max_tokens"),
) -> Parameters:
    """Checks the parameters that decide cost and form of the answer; the engine checks the rest.

    Args:
        values: all parameters but the prompt's, by name.
        max_choices: the largest `n`.
        max_tokens_names: what the length of the answer may be asked by; the first that is there counts.

    Raises:
        BadRequestError: names the parameter, its value and what was expected.
    """
    model = _typed(values, "model", str)
    if model is None:
        raise BadRequestError(Reason.INVALID_REQUEST, "Parameter 'model' is missing.", param="model")
    asked_choices = _typed(values, "n", int)
    choices = 1 if asked_choices is None else asked_choices
    if not 1 <= choices <= max_choices:
        raise BadRequestError(Reason.INVALID_REQUEST, f"n: {choices}, expected 1 to {max_choices}.", param="n")
    asked_tokens = {name: _positive(values, name) for name in max_tokens_names}
    max_tokens_name = next((name for name, value in asked_tokens.items() if value is not None), max_tokens_names[-1])
    stream = _typed(values, "stream", bool) or False
    options = values.get("stream_options")
    if options is not None and not stream:
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            "stream_options is allowed only when stream is true.",
            param="stream_options",
        )
    return Parameters(
        model=model,
        stream=stream,
        include_usage=_include_usage(options),
        choices=choices,
        max_tokens=asked_tokens[max_tokens_name],
        max_tokens_name=max_tokens_name,
        reasoning_effort=_typed(values, "reasoning_effort", str),
    )


def check_model(parameters: Parameters, served: str) -> None:
    """Refuses every model but the one that is served.

    Raises:
        GatewayError: 404.
    """
    if parameters.model != served:
        raise GatewayError(
            404,
            Reason.MODEL_NOT_FOUND,
            f"The model {parameters.model[:128]!r} does not exist; this server has {served!r}.",
            param="model",
        )


def _typed(values: dict[str, Any], name: str, kind: type[T]) -> T | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = msgspec.json.encode(value).decode()[:64]
        raise BadRequestError(Reason.INVALID_REQUEST, f"{name}: {shown}, expected {kind.__name__}.", param=name)
    return value


def _positive(values: dict[str, Any], name: str) -> int | None:
    value = _typed(values, name, int)
    if value is not None and value < 1:
        raise BadRequestError(Reason.INVALID_REQUEST, f"{name}: {value}, expected at least 1.", param=name)
    return value


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    try:
        return bool(msgspec.convert(options, StreamOptions).include_usage)
    except msgspec.ValidationError as error:
        raise BadRequestError(Reason.INVALID_REQUEST, f"stream_options: {error}", param="stream_options") from None
