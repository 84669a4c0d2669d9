"""Decides on a request before the engine sees it: parses, checks, counts."""

from dataclasses import dataclass
from typing import Any

import msgspec

from server.conversation import Message, walk_images, walk_texts
from server.errors import BadRequestError, GatewayError, Reason
from server.images import ImageError, ImageLimits, ImageSize, decode_data_url, read_header, verify_pixels
from server.parameters import Parameters, check_names, read_parameters
from server.prompt_counter import PromptCount, PromptCounter
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
        self._image_limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)

    def admit(self, body: bytes) -> Admitted:
        """Checks a body, cheapest first: names, shape, text, image headers, length, and the images' data last.

        Raises:
            GatewayError: the first thing wrong; of images all that are wrong.
        """
        raw = _split(body)
        check_names(set(raw))
        parameters = read_parameters(self._decode_parameters(raw), max_choices=self._settings.max_choices)
        if parameters.model != self._settings.model:
            raise GatewayError(
                404,
                Reason.MODEL_NOT_FOUND,
                f"The model {parameters.model[:128]!r} does not exist; this server has {self._settings.model!r}.",
                param="model",
            )
        messages = self._decode_messages(raw.get("messages"))
        self._counter.check_reserved(messages)
        images, sizes = self._read_images(messages)
        count = self._counter.count(messages, sizes, **_template_variables(parameters))
        self._check_length(count, [path for path, _ in images], parameters)
        self._verify(images)
        return Admitted(parameters=parameters, count=count, body=_with_usage(body, parameters))

    def _decode_parameters(self, raw: dict[str, msgspec.Raw]) -> dict[str, Any]:
        """Everything but the messages; small by its limit, so that odd JSON cannot cost much."""
        parts = {name: value for name, value in raw.items() if name != "messages"}
        total = sum(len(bytes(value)) for value in parts.values())
        if total > self._settings.max_parameter_bytes:
            raise GatewayError(
                413,
                Reason.BODY_TOO_LARGE,
                f"The parameters take {total} bytes, expected at most {self._settings.max_parameter_bytes}.",
            )
        values = {}
        for name, value in parts.items():
            try:
                values[name] = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise BadRequestError(Reason.INVALID_JSON, f"{name}: {_json_trouble(error)}", param=name) from None
            if _deeper_than(values[name], self._settings.max_json_depth):
                raise BadRequestError(
                    Reason.INVALID_JSON,
                    f"{name}: nested more than {self._settings.max_json_depth} levels deep.",
                    param=name,
                )
        return values

    def _decode_messages(self, raw: msgspec.Raw | None) -> list[Message]:
        if raw is None:
            raise BadRequestError(Reason.INVALID_REQUEST, "Parameter 'messages' is missing.", param="messages")
        try:
            messages = msgspec.json.decode(raw, type=list[Message])
        except msgspec.ValidationError as error:
            message, path = _shape_trouble(error)
            raise BadRequestError(Reason.INVALID_REQUEST, message, param=path) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(Reason.INVALID_JSON, f"messages: {_json_trouble(error)}", param="messages") from None
        limits = self._settings
        num_parts = sum(len(message.parts()) for message in messages)
        num_characters = sum(len(text) for _, text in walk_texts(messages))
        for name, value, low, high in (
            ("messages", len(messages), 1, limits.max_messages),
            ("content parts", num_parts, 0, limits.max_parts),
            ("characters of text", num_characters, 0, limits.max_text_characters),
        ):
            if not low <= value <= high:
                raise BadRequestError(
                    Reason.INVALID_REQUEST, f"{value} {name}, expected {low} to {high}.", param="messages"
                )
        return messages

    def _read_images(self, messages: list[Message]) -> tuple[list[tuple[str, bytes]], list[ImageSize]]:
        """Path and bytes of every image, and its size by its header."""
        urls = list(walk_images(messages))
        limits = self._settings
        if len(urls) > limits.max_images:
            raise BadRequestError(
                Reason.TOO_MANY_IMAGES,
                f"{len(urls)} images, expected at most {limits.max_images}.",
                param=urls[limits.max_images][0],
            )
        images, sizes, failures = [], [], []
        total_pixels = 0
        for path, url in urls:
            try:
                content = decode_data_url(url, self._image_limits)
                size = read_header(content, self._image_limits)
                self._counter.image_tokens(size)
            except ValueError as error:
                failures.append((path, str(error)))
                continue
            total_pixels += size.pixels
            if total_pixels > limits.max_total_pixels:
                failures.append((path, f"all images up to this one exceed {limits.max_total_pixels} pixels"))
                break
            images.append((path, content))
            sizes.append(size)
        _raise_for_images(failures, len(urls))
        return images, sizes

    def _verify(self, images: list[tuple[str, bytes]]) -> None:
        failures = []
        for path, content in images:
            try:
                verify_pixels(content)
            except ImageError as error:
                failures.append((path, str(error)))
        _raise_for_images(failures, len(images))

    def _check_length(self, count: PromptCount, paths: list[str], parameters: Parameters) -> None:
        limit = self._context_length
        answer = parameters.max_tokens or 1
        excess = count.prompt_tokens + answer - limit
        if excess <= 0:
            return
        if count.prompt_tokens + 1 <= limit:
            raise BadRequestError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. The prompt takes {count.prompt_tokens} and "
                f"{parameters.max_tokens_name} asks for {answer}: {excess} too many. "
                f"Ask for at most {limit - count.prompt_tokens}.",
                param=parameters.max_tokens_name,
            )
        raise BadRequestError(
            Reason.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {limit} tokens. The prompt takes {count.prompt_tokens} tokens, "
            f"{count.total_image_tokens} of them for {len(paths)} images, and at least 1 must be left for the answer: "
            f"{count.prompt_tokens + 1 - limit} too many. {_first_unfit(count, paths, limit)}",
            param="messages",
        )


def _split(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise BadRequestError(Reason.INVALID_JSON, "The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(Reason.INVALID_JSON, f"The body is not valid JSON: {_json_trouble(error)}") from None


def _json_trouble(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply."
    return "not valid UTF-8." if isinstance(error, UnicodeDecodeError) else f"{error}."


def _shape_trouble(error: msgspec.ValidationError) -> tuple[str, str]:
    """msgspec's "Expected `str`, got `int` - at `$[0].role`" as a sentence about messages[0].role, and that path."""
    what, _, where = str(error).partition(" - at `$")
    path = "messages" + where.rstrip("`")
    return f"{path}: {what}.", path


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


def _raise_for_images(failures: list[tuple[str, str]], num_images: int) -> None:
    if failures:
        listed = "; ".join(f"{path}: {message}" for path, message in failures)
        raise BadRequestError(
            Reason.INVALID_IMAGE,
            f"{len(failures)} of {num_images} images cannot be used. {listed}.",
            param=failures[0][0],
        )


def _first_unfit(count: PromptCount, paths: list[str], limit: int) -> str:
    for path, start, tokens in zip(paths, count.image_starts, count.image_tokens, strict=True):
        if start + tokens > limit - 1:
            return f"The first image that does not fit is {path} ({tokens} tokens)."
    return "Every image fits; the text after them does not." if paths else "There are no images in it."


def _template_variables(parameters: Parameters) -> dict[str, Any]:
    """What vLLM passes to the template beside the messages (`ChatCompletionRequest.build_chat_params`)."""
    effort = parameters.reasoning_effort
    if effort is None:
        return {}
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def _with_usage(body: bytes, parameters: Parameters) -> bytes:
    """Asks the engine for usage at a stream's end even where the client did not: every count is checked against it.

    The last of two equal keys counts in JSON as the engine reads it, so nothing is parsed or copied twice.
    """
    if not parameters.stream or parameters.include_usage:
        return body
    return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
