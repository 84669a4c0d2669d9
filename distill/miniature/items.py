"""Questions over haystacks of images, in the form of Visual Haystacks (single needle)."""

import random
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from distill.miniature.objects import OBJECTS, draw_image

Kind = Literal["open", "yes_no"]
KINDS: tuple[Kind, ...] = ("open", "yes_no")

# Seeds of `make_item` below this train, at or above it evaluate: no evaluation item was ever trained on.
FIRST_EVALUATION_SEED = 1_000_000_000

_OPENING = "You are given a set of images. Please answer the following question"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, its haystack and the only right answer."""

    images: tuple[Image.Image, ...]
    """RGB, 32x32 pixels, two objects each."""
    question: str
    """The whole text of the prompt, after the images."""
    answer: str
    """"yes", "no" or the name of an object."""
    kind: Kind
    needle_index: int
    """The image the question is about, from 0."""

    def messages(self) -> list[dict[str, Any]]:
        """One user message in the form of `apply_chat_template`: the images first, then the text."""
        images = [{"type": "image", "image": image} for image in self.images]
        return [{"role": "user", "content": [*images, {"type": "text", "text": self.question}]}]


@dataclass(frozen=True, kw_only=True)
class Haystack:
    """What is in each image, and what is asked: an item before it is drawn."""

    contents: tuple[tuple[str, str], ...]
    anchor: str
    asked: str | None
    answer: str
    needle_index: int


def make_haystack(rng: random.Random, num_images: int, kind: Kind) -> Haystack:
    """Places one image with the anchor among images without it; every other object may repeat anywhere.

    For "yes_no" half the questions ask for the needle's other object and half for one that the needle lacks.
    """
    if num_images < 1:
        raise ValueError(f"num_images: {num_images}, expected at least 1")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
    anchor, target, absent = rng.sample(OBJECTS, 3)
    others = [name for name in OBJECTS if name != anchor]
    contents: list[tuple[str, str]] = []
    for _ in range(num_images):
        first, second = rng.sample(others, 2)
        contents.append((first, second))
    needle_index = rng.randrange(num_images)
    contents[needle_index] = (anchor, target)
    asked, answer = (None, target) if kind == "open" else rng.choice([(target, "yes"), (absent, "no")])
    return Haystack(contents=tuple(contents), anchor=anchor, asked=asked, answer=answer, needle_index=needle_index)


def prompt_text(haystack: Haystack) -> str:
    """The prompt of Visual Haystacks, or its open form, which a small model learns faster."""
    about = f"For the image with the {haystack.anchor},"
    if haystack.asked is None:
        return f"{_OPENING}: {about} what else is there?"
    return f"{_OPENING} in Yes or No: {about} is there a {haystack.asked}?"


def make_item(seed: int, num_images: int, kind: Kind) -> Item:
    """Makes the item of this seed; the same arguments always make the same item.

    Args:
        seed: below `FIRST_EVALUATION_SEED` for training, from there on for evaluation.
        num_images: size of the haystack, at least 1.
        kind: "open" (answer: an object) or "yes_no".
    """
    rng = random.Random(f"{seed}/{num_images}/{kind}")
    haystack = make_haystack(rng, num_images, kind)
    return Item(
        images=tuple(draw_image(names, rng) for names in haystack.contents),
        question=prompt_text(haystack),
        answer=haystack.answer,
        kind=kind,
        needle_index=haystack.needle_index,
    )


def legal_answers(kind: Kind) -> tuple[str, ...]:
    """Every answer that complies with a question of this kind."""
    return OBJECTS if kind == "open" else ("yes", "no")
