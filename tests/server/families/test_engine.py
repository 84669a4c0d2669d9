"""The count of whole conversations against the real engine's prompts, for every family."""

import base64
import io
import json
from typing import Any

import msgspec
import pytest
from PIL import Image, ImageOps

from server.checkpoint import read_checkpoint
from server.media.images import ImageSize
from server.prompt.prompt_counter import PromptCounter
from server.requests.conversation import Conversation, Message
from tests.rope_gain.models import TINY, tokenizer_of
from tests.server.families.conversations import conversations
from tests.server.families.tiny_engines import ARCHITECTURES, TinyEngine

pytestmark = pytest.mark.engine


def size_of(part: dict[str, Any]) -> ImageSize:
    content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    width, height = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size
    return ImageSize(width=width, height=height)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_count_is_the_engines(tiny_engines: dict[str, TinyEngine], architecture: str) -> None:
    engine = tiny_engines[architecture]
    checkpoint = read_checkpoint(engine.folder)
    counter = PromptCounter(checkpoint)
    tokenizer = tokenizer_of(TINY[architecture].make_processor())
    placeholder = tokenizer.convert_tokens_to_ids(checkpoint.image_rule.placeholder)
    for messages, ids in zip(conversations(), engine.prompts, strict=True):
        sizes = [size_of(part) for message in messages for part in message["content"] if "image_url" in part]

        count = counter.count(
            Conversation(messages=msgspec.json.decode(json.dumps(messages), type=list[Message]), name="messages"),
            sizes,
        )

        assert count.prompt_tokens == len(ids), sizes
        # A start and an end around each image of InternVL are the image's own.
        around = len(checkpoint.image_rule.tokens) - 1
        assert count.total_image_tokens - around * len(sizes) == ids.count(placeholder)
        starts = [start + around // 2 for start in count.image_starts]
        assert [ids[start] for start in starts] == [placeholder] * len(sizes)
