"""A request as the gateway checks it, without a socket."""

import asyncio
import functools
import json
from collections.abc import Callable, Container
from typing import Any

import pytest

from server.checkpoint import read_checkpoint
from server.media.identity import Identity
from server.media.request_images import ImageChecker
from server.media.source import Content, DataUrl, ImageError
from server.prompt.length import LengthLimits
from server.prompt.prompt_counter import PromptCounter
from server.prompt.window import Windows
from server.requests.admission import Admission, Admitted
from server.requests.chat import parse_chat
from server.settings import Settings


@pytest.fixture
def admit(make_settings: Callable[..., Settings]) -> Callable[..., Admitted]:
    """Parses and checks a body; `load` stands for whatever brings links and uploaded files to this machine."""
    counter_of = functools.cache(lambda checkpoint: PromptCounter(read_checkpoint(checkpoint)))

    def admit_body(
        body: Any, *, load: Callable[[Any], Content | ImageError] | None = None, tenant: str = "t", **changes: Any
    ) -> Admitted:
        settings = make_settings(**changes)
        counter = counter_of(settings.checkpoint)
        content = body if isinstance(body, bytes | bytearray) else json.dumps(body).encode()
        images = ImageChecker(settings, counter, Identity("a secret of the tests"))
        limits = LengthLimits(context_length=2048, max_prompt_tokens=settings.max_prompt_tokens)
        checkpoint = read_checkpoint(settings.checkpoint)
        windows = Windows(limits, checkpoint.effective_window, checkpoint.image_rule)
        admission = Admission(settings, counter, images, windows)
        draft = admission.parse(content, parse_chat)
        sources = images.place(draft.conversation)
        remote = [placed.source for placed in sources if not isinstance(placed.source, DataUrl | ImageError)]
        loaded = [load(source) if load else ImageError("not loaded") for source in remote]
        return admission.check(draft, sources, loaded, tenant, settings.window_policy)

    return admit_body


@pytest.fixture
def engine_json() -> Callable[..., Any]:
    """What an engine reads that holds some images already."""

    def decode(admitted: Admitted, held: Container[str] = ()) -> Any:
        return json.loads(b"".join(asyncio.run(admitted.body.payload(held)).pieces))

    return decode
