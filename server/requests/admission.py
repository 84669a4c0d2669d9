"""Decides on a request before the engine sees it: parses, checks, counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import BadRequestError, Reason
from server.media.request_images import ImageChecker, RequestImage
from server.media.source import Content, ImageError, PlacedSource
from server.prompt.prompt_counter import PromptCount, PromptCounter
from server.requests.answer_form import AnswerForm
from server.requests.draft import Draft
from server.requests.engine_body import EngineBody
from server.requests.parameters import Parameters
from server.settings import Settings

Parse = Callable[[bytes, Settings], Draft]
"""How one route's body becomes a draft; raises GatewayError for the first thing wrong."""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A request that may go to the engine."""

    parameters: Parameters
    engine_path: str
    form: AnswerForm | None
    count: PromptCount
    body: EngineBody
    """What the engine gets."""
    images: Sequence[RequestImage]
    """In the order of the prompt."""

    @property
    def image_bytes(self) -> int:
        """Of all images together, as files."""
        return sum(image.num_bytes for image in self.images)

    @property
    def image_pixels(self) -> int:
        """Of all images together."""
        return sum(image.size.pixels for image in self.images)


class Admission:
    """Every check of a request, in two steps; both block, so long bodies are for a worker thread."""

    def __init__(
        self, settings: Settings, counter: PromptCounter, images: ImageChecker, *, context_length: int
    ) -> None:
        self._settings = settings
        self._counter = counter
        self._images = images
        self._context_length = context_length

    def parse(self, body: bytes, parse: Parse) -> Draft:
        """Names, shape and text; of images nothing but their places.

        Raises:
            GatewayError: the first thing wrong.
        """
        draft = parse(body, self._settings)
        self._counter.check_tools(draft.conversation)
        self._counter.check_reserved(draft.conversation)
        return draft

    def check(
        self, draft: Draft, sources: Sequence[PlacedSource], loaded: Sequence[Content | ImageError], tenant: str
    ) -> Admitted:
        """Image headers, length, and the images' data last.

        Args:
            draft: from `parse`.
            sources: its images.
            loaded: what came of each of them that is not in the body, in order.
            tenant: whose images they are.

        Raises:
            GatewayError: the first thing wrong; of images all that are wrong.
        """
        images = self._images.read(sources, loaded, tenant)
        sizes = [image.size for image in images]
        count = self._counter.count(draft.conversation, sizes, **_template_variables(draft.parameters))
        self._check_length(count, images, draft)
        images = self._images.verify(images)
        return Admitted(
            parameters=draft.parameters,
            engine_path=draft.engine_path,
            form=draft.form,
            count=count,
            body=EngineBody(draft, images),
            images=images,
        )

    def _check_length(self, count: PromptCount, images: list[RequestImage], draft: Draft) -> None:
        limit, parameters = self._context_length, draft.parameters
        if count.prompt_tokens >= limit:
            raise BadRequestError(
                Reason.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {limit} tokens. The prompt takes {count.prompt_tokens} "
                f"tokens, {count.total_image_tokens} of them for {len(images)} images, and at least 1 must be left "
                f"for the answer: {count.prompt_tokens + 1 - limit} too many. {_first_unfit(count, images, limit)}",
                param=draft.conversation.name,
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
