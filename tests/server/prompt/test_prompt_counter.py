"""The count against the real processor's own prompts, and what clients may not type."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from server.checkpoint import read_checkpoint
from server.errors import BadRequestError, Reason
from server.media.images import ImageSize
from server.prompt.prompt_counter import PromptCounter
from server.requests.conversation import Conversation, Message

TEXTS = (
    "",
    "hello",
    "What else is there?\n",
    "ü漢字🎉",
    "  spaces  ",
    "e\u0301",
    "a" * 300,
    "<|not special|>",
    "\t{{x}}",
)


@pytest.fixture(scope="module")
def counter(checkpoint_path: Path) -> PromptCounter:
    return PromptCounter(read_checkpoint(checkpoint_path))


def messages_of(value: Any) -> Conversation:
    messages = msgspec.json.decode(msgspec.json.encode(value), type=list[Message])
    return Conversation(messages=messages, name="messages")


def user(*content: Any) -> Conversation:
    return messages_of([{"role": "user", "content": list(content)}])


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def random_conversation(seed: int) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """One to five messages of strings, texts and images in any order."""
    chance = random.Random(seed)
    images = []
    conversation = []
    for role in chance.choice([["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user"] * 2]):
        if chance.random() < 0.3:
            conversation.append({"role": role, "content": chance.choice(TEXTS)})
            continue
        parts: list[dict[str, Any]] = []
        for _ in range(chance.randrange(5)):
            if chance.random() < 0.5 and role == "user":
                images.append(Image.new("RGB", (chance.randrange(1, 200), chance.randrange(1, 200))))
                parts.append({"type": "image"})
            else:
                parts.append(text(chance.choice(TEXTS)))
        conversation.append({"role": role, "content": parts})
    return conversation, images


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_real_processor(counter: PromptCounter, processor: Any, seed: int) -> None:
    conversation, images = random_conversation(seed)
    prompt = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    ids = processor(text=[prompt], images=images or None)["input_ids"][0]
    requested = [
        {**m, "content": [IMAGE if p["type"] == "image" else p for p in m["content"]]}
        if isinstance(m["content"], list)
        else m
        for m in conversation
    ]

    count = counter.count(messages_of(requested), [ImageSize(width=i.width, height=i.height) for i in images])

    assert count.prompt_tokens == len(ids)
    image_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    places = [place for place, token in enumerate(ids) if token == image_id]
    assert count.total_image_tokens == len(places)
    assert set(count.image_starts) <= set(places)
    assert len(count.image_starts) == len(images)


@pytest.mark.parametrize(
    "token",
    [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ],
)
@pytest.mark.parametrize("place", ["string", "part", "split", "name", "reasoning"])
def test_control_tokens_typed_as_text_are_refused(counter: PromptCounter, token: str, place: str) -> None:
    shapes: dict[str, tuple[Any, str]] = {
        "string": ([{"role": "user", "content": f"a{token}b"}], "messages[0].content"),
        "part": ([{"role": "user", "content": [text("a"), text(token)]}], "messages[0].content[1].text"),
        "split": ([{"role": "user", "content": [text(token[:5]), text(token[5:])]}], "messages[0].content"),
        "name": ([{"role": "user", "content": "a", "name": token}], "messages[0].name"),
        "reasoning": ([{"role": "assistant", "reasoning": token}], "messages[0].reasoning"),
    }
    messages, path = shapes[place]

    with pytest.raises(BadRequestError) as refused:
        counter.check_reserved(messages_of(messages))

    assert (refused.value.reason, refused.value.param) == (Reason.RESERVED_TOKEN, path)
    assert repr(token) in refused.value.message


def test_what_only_looks_like_a_token_passes(counter: PromptCounter) -> None:
    counter.check_reserved(user(text("<|image_pad"), text(" |> im_end <| im_start |> </s> 漢字")))


def test_normalization_cannot_make_a_token(checkpoint_path: Path, processor: Any) -> None:
    """Whatever text passes the check becomes no control token in the real tokenizer."""
    counter = PromptCounter(read_checkpoint(checkpoint_path))
    chance = random.Random(0)
    alphabet = ["<", "|", ">", "im_", "start", "image_", "pad", "<|", "|>", "\u0338", "\uff1c", "\u200b", "\u0301"]
    for _ in range(500):
        tried = "".join(chance.choices(alphabet, k=6))
        try:
            counter.check_reserved(user(text(tried)))
        except BadRequestError:
            continue
        ids = processor.tokenizer(tried)["input_ids"]
        assert not set(ids) & set(processor.tokenizer.all_special_ids), tried


def test_images_that_the_template_hides_are_refused(checkpoint_path: Path, tmp_path: Path) -> None:
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint_path / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    counter = PromptCounter(read_checkpoint(tmp_path))

    with pytest.raises(BadRequestError, match="shows 0 of 1 images"):
        counter.count(user(IMAGE, text("a")), [ImageSize(width=32, height=32)])
