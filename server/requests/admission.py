"""Decides on a request before the engine sees it: parses, checks, counts."""

from dataclasses import dataclass
from typing import Any

from server.errors import BadRequestError, GatewayError, Reason
from server.media.request_images import RequestImage, read_images, verify_images
from server.prompt.prompt_counter import PromptCount, PromptCounter
from server.requests.decoding import decode_messages, decode_parameters, split_body
from server.requests.parameters import Parameters, check_names, read_parameters
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A request that may go to the engine."""

    parameters: Parameters
    count: PromptCount
    body: bytes
    """What the engine gets: the client's own bytes wherever nothing had to change."""


class Admission:
    """Every check of a chat request; blocking, so called in a worker thread."""

    def __init__(self, settings: Settings, counter: PromptCounter, *, context_length: int) -> None:
        self._settings = settings
        self._counter = counter
        self._context_length = context_length

    def admit(self, body: bytes) -> Admitted:
        """Checks a body, cheapest first: names, shape, text, image headers, length, and the images' data last.

        Raises:
            GatewayError: the first thing wrong; of images all that are wrong.
        """
        raw = split_body(body)
        check_names(set(raw))
        parameters = read_parameters(decode_parameters(raw, self._settings), max_choices=self._settings.max_choices)
        self._check_model(parameters.model)
        messages = decode_messages(raw.get("messages"), self._settings)
        self._counter.check_reserved(messages)
        images = read_images(messages, self._counter, self._settings)
        sizes = [image.size for image in images]
        count = self._counter.count(messages, sizes, **_template_variables(parameters))
        self._check_length(count, images, parameters)
        verify_images(images)
        return Admitted(parameters=parameters, count=count, body=_with_usage(body, parameters))

    def _check_model(self, model: str) -> None:
        if model != self._settings.model:
            raise GatewayError(
                404,
                Reason.MODEL_NOT_FOUND,
                f"The model {model[:128]!r} does not exist; this server has {self._settings.model!r}.",
                param="model",
            )

    def _check_length(self, count: PromptCount, images: list[RequestImage], parameters: Parameters) -> None:
        limit = self._context_length
        if count.prompt_tokens >= limit:
            raise BadRequestError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. The prompt takes {count.prompt_tokens} "
                f"tokens, {count.total_image_tokens} of them for {len(images)} images, and at least 1 must be left "
                f"for the answer: {count.prompt_tokens + 1 - limit} too many. {_first_unfit(count, images, limit)}",
                param="messages",
            )
        asked = parameters.max_tokens
        if asked is not None and count.prompt_tokens + asked > limit:
            # vLLM would shorten the answer without a word.
            raise BadRequestError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. The prompt takes {count.prompt_tokens} "
                f"and {parameters.max_tokens_name} asks for {asked}: {count.prompt_tokens + asked - limit} too many. "
                f"Ask for at most {limit - count.prompt_tokens}.",
                param=parameters.max_tokens_name,
            )


def _first_unfit(count: PromptCount, images: list[RequestImage], limit: int) -> str:
    for image, start, tokens in zip(images, count.image_starts, count.image_tokens, strict=True):
        if start + tokens >= limit:
            return f"The first image that does not fit is {image.path} ({tokens} tokens)."
    return "Every image fits; the text after them does not." if images else "There are no images in it."


def _template_variables(parameters: Parameters) -> dict[str, Any]:
    """What vLLM passes to the template beside the messages (`ChatCompletionRequest.build_chat_params`)."""
    effort = parameters.reasoning_effort
    if effort is None:
        return {}
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def _with_usage(body: bytes, parameters: Parameters) -> bytes:
    """Asks the engine for usage at a stream's end even where the client did not: every count is checked by it.

    The last of two equal keys counts in JSON as the engine reads it, so nothing is parsed or copied twice.
    """
    if not parameters.stream or parameters.include_usage:
        return body
    return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
