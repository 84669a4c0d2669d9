"""Decides on a request before the engine sees it: parses, checks, counts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from server.engines.affinity import affinity_key
from server.errors import BadRequestError
from server.media.images import ImageSize
from server.media.request_images import ImageChecker, RequestImage
from server.media.source import Content, ImageError, PlacedSource
from server.prompt.length import Prompt
from server.prompt.prompt_counter import PromptCount, PromptCounter
from server.prompt.remembered_fits import RememberedFits
from server.prompt.window import Windows, WindowUse
from server.prompt.window_policy import WindowPolicy
from server.requests.answer_form import AnswerForm
from server.requests.draft import Draft
from server.requests.engine_body import EngineBody
from server.requests.parameters import Parameters
from server.settings import Settings

Parse = Callable[[bytes, Settings], Draft]
"""How one route's body becomes a draft; raises GatewayError for the first thing wrong."""


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may go to the engine."""

    parameters: Parameters
    engine_path: str
    form: AnswerForm | None
    window: WindowUse
    body: EngineBody
    """What the engine gets."""
    images: Sequence[RequestImage]
    """In the order of the prompt."""
    affinity: Callable[[], bytes]
    """What it has in common with the requests whose engine should serve it; made where there is a choice."""

    @property
    def count(self) -> PromptCount:
        """As the engine will see the prompt."""
        return self.window.count

    @property
    def image_bytes(self) -> int:
        """Of all images together, as files."""
        return sum(image.num_bytes for image in self.images)

    @property
    def image_pixels(self) -> int:
        """Of all images together."""
        return sum(image.size.pixels for image in self.images)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was counted and goes nowhere."""

    name: str
    """The parameter that holds the prompt."""
    images: Sequence[RequestImage]
    window: WindowUse
    refusal: BadRequestError | None
    """Why a prompt of this length would be refused."""


class Admission:
    """Every check of a request, in two steps; both block, so long bodies are for a worker thread."""

    def __init__(self, settings: Settings, counter: PromptCounter, images: ImageChecker, windows: Windows) -> None:
        self._settings = settings
        self._counter = counter
        self._images = images
        self._windows = windows
        self._fits = RememberedFits(settings.max_remembered_images)

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
        self,
        draft: Draft,
        sources: Sequence[PlacedSource],
        loaded: Sequence[Content | ImageError],
        tenant: str,
        policy: WindowPolicy,
    ) -> Admitted:
        """Image headers, length, and the images' data last.

        Args:
            draft: from `parse`.
            sources: its images.
            loaded: what came of each of them that is not in the body, in order.
            tenant: whose images they are.
            policy: for a prompt beyond the effective window.

        Raises:
            GatewayError: the first thing wrong; of images all that are wrong.
        """
        images, prompt = self._count(draft, sources, loaded, tenant)
        # By the images as they were sent: a later turn sends them so again.
        names = [image.uuid for image in images]
        affinity = partial(affinity_key, tenant, draft.conversation, names)
        window = self._admit(draft, images, prompt, policy, affinity)
        images = self._images.verify(images)
        if window.fitted:
            images = self._images.resize(images, window.fitted, tenant)
            self._fits.remember(affinity(), names, window.fitted)
        return Admitted(
            parameters=draft.parameters,
            engine_path=draft.engine_path,
            form=draft.form,
            window=window,
            body=EngineBody(draft, images),
            images=images,
            affinity=affinity,
        )

    def measure(
        self,
        draft: Draft,
        sources: Sequence[PlacedSource],
        loaded: Sequence[Content | ImageError],
        tenant: str,
        policy: WindowPolicy,
    ) -> Measured:
        """The same as `check` as far as the count, for a prompt of any length; images are known by their headers.

        Raises:
            GatewayError: the prompt cannot be counted; of images all that are wrong.
        """
        images, prompt = self._count(draft, sources, loaded, tenant)
        window, refusal = self._windows.use(prompt.count), None
        affinity = partial(affinity_key, tenant, draft.conversation, [image.uuid for image in images])
        try:
            window = self._admit(draft, images, prompt, policy, affinity)
        except BadRequestError as error:
            refusal = error
        return Measured(name=draft.conversation.name, images=images, window=window, refusal=refusal)

    def _count(
        self, draft: Draft, sources: Sequence[PlacedSource], loaded: Sequence[Content | ImageError], tenant: str
    ) -> tuple[list[RequestImage], Prompt]:
        images = self._images.read(sources, loaded, tenant)
        sizes = [image.size for image in images]
        conversation, parameters = draft.conversation, draft.parameters
        count = self._counter.count(conversation, sizes, **_template_variables(parameters))
        prompt = Prompt(
            count=count,
            image_paths=[image.path for image in images],
            name=conversation.prompt_path(count.longest) if conversation.prompts else conversation.name,
            max_tokens=parameters.max_tokens,
            max_tokens_name=parameters.max_tokens_name,
        )
        return images, prompt

    def _admit(
        self,
        draft: Draft,
        images: list[RequestImage],
        prompt: Prompt,
        policy: WindowPolicy,
        affinity: Callable[[], bytes],
    ) -> WindowUse:
        first = draft.conversation.num_earlier_images() if images else 0
        earlier: Mapping[int, ImageSize] = {}
        if first and policy is WindowPolicy.FIT:
            earlier = self._fits.recall(affinity(), [image.uuid for image in images[:first]])
        return self._windows.admit(prompt, [image.size for image in images], policy, first=first, earlier=earlier)


def _template_variables(parameters: Parameters) -> dict[str, Any]:
    """What vLLM passes to the template beside the messages (`ChatCompletionRequest.build_chat_params`)."""
    effort = parameters.reasoning_effort
    if effort is None:
        return {}
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"}
