"""Training haystacks in the form of Visual Haystacks (arXiv 2407.13766), from COCO's training images."""

import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from distill.data.coco import CocoImages
from distill.data.visual_haystacks import OPENING

Answer = Literal["yes", "no"]

_PAIRS_AT_HAND = 256


class Plan(NamedTuple):
    """A question before its images are drawn."""

    size: int
    num_needles: int
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Haystack:
    """A question, the images it is about, and the answer."""

    paths: tuple[str, ...]
    question: str
    answer: Answer

    def line(self) -> str:
        """One line of OpenAI messages: the images, the prompt of Visual Haystacks, the answer."""
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": path}} for path in self.paths]
        content.append({"type": "text", "text": OPENING + self.question})
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": self.answer}]
        return json.dumps({"messages": messages}) + "\n"


def plan_haystacks(*, sizes: list[int], needles: list[int], count: int, seed: int) -> list[Plan]:
    """Questions spread evenly over sizes and numbers of needles, half of each yes and half no, in random order.

    Where a number is odd, the larger half is yes and no in turns.

    Raises:
        ValueError: a size has no room for the needles.
    """
    if min(sizes) < max(needles):
        raise ValueError(f"--sizes: {min(sizes)}, expected at least as many images as needles, {max(needles)}")
    cells = list(itertools.product(sizes, needles))
    ends = [count * index // len(cells) for index in range(len(cells) + 1)]
    answers: list[Answer] = ["yes", "no"]
    # Question i of all is yes if i is even: cells and the whole are balanced alike.
    plans = [
        Plan(*cell, answers[index % 2])
        for cell, (start, end) in zip(cells, itertools.pairwise(ends), strict=True)
        for index in range(start, end)
    ]
    random.Random(f"plans/{seed}").shuffle(plans)
    return plans


class HaystackMaker:
    """Draws needles and distractors.

    Anchor and target are drawn before the answer and whatever it is, so that the question alone tells nothing. No
    distractor shows the anchor; any may show the target, so that the needle has to be found.
    """

    def __init__(self, coco: CocoImages, *, largest_size: int, most_needles: int, min_images: int) -> None:
        """Finds the pairs of objects that can be asked about.

        Args:
            min_images: least number of different needles, for either answer, that a pair must have.

        Raises:
            ValueError: there is no such pair.
        """
        self._coco = coco
        self._images_with = _images_by_object(coco)
        self._pairs, self.left_out = self._usable_pairs(largest_size, max(min_images, most_needles))
        if not self._pairs:
            raise ValueError(f"no pair of objects can be asked about: {dict(self.left_out)}; expected more images")
        self._with_both = lru_cache(maxsize=_PAIRS_AT_HAND)(self._find_both)

    @property
    def num_pairs(self) -> int:
        """How many pairs of anchor and target questions are drawn from."""
        return len(self._pairs)

    def make(self, plan: Plan, rng: random.Random) -> Haystack:
        """Draws one haystack."""
        anchor, target = rng.choice(self._pairs)
        num_hits, question = self._ask(plan, self._coco.names[anchor], self._coco.names[target], rng)
        images = rng.sample(self._with_both(anchor, target), num_hits)
        images += self._draw_without(anchor, target, plan.num_needles - num_hits, rng)
        images += self._draw_distractors(anchor, plan.size - plan.num_needles, rng)
        rng.shuffle(images)
        paths = tuple(self._coco.paths[image] for image in images)
        return Haystack(paths=paths, question=question, answer=plan.answer)

    def _ask(self, plan: Plan, anchor: str, target: str, rng: random.Random) -> tuple[int, str]:
        """How many needles show the target, and the question."""
        is_yes = plan.answer == "yes"
        if plan.num_needles == 1:
            return int(is_yes), f"For the image with the {anchor}, is there a {target}?"
        everyone = plan.num_needles
        if rng.random() < 0.5:
            question = f"For all images with the {anchor}, do all of them contain the {target}?"
            return everyone if is_yes else rng.randrange(everyone), question
        question = f"For all images with the {anchor}, do any of them contain the {target}?"
        return rng.randint(1, everyone) if is_yes else 0, question

    def _usable_pairs(self, largest_size: int, min_images: int) -> tuple[list[tuple[int, int]], Counter[str]]:
        num_both = _count_pairs(self._coco)
        num_images = len(self._coco.paths)
        pairs: list[tuple[int, int]] = []
        left_out = Counter[str]()
        for anchor, target in itertools.permutations(range(len(self._coco.names)), 2):
            num_anchor, both = len(self._images_with[anchor]), num_both[anchor, target]
            if both < min_images:
                left_out[f"pairs seen together in fewer than {min_images} images"] += 1
            elif num_anchor - both < min_images:
                left_out[f"pairs whose anchor is without the target in fewer than {min_images} images"] += 1
            elif num_images - num_anchor < largest_size - 1:
                left_out[f"pairs whose anchor leaves fewer than {largest_size - 1} images without it"] += 1
            else:
                pairs.append((anchor, target))
        return pairs, left_out

    def _find_both(self, anchor: int, target: int) -> list[int]:
        rarer = min(self._images_with[anchor], self._images_with[target], key=len)
        both = 1 << anchor | 1 << target
        return [image for image in rarer if self._coco.objects[image] & both == both]

    def _draw_without(self, anchor: int, target: int, count: int, rng: random.Random) -> list[int]:
        """Images with the anchor and without the target."""
        images = self._images_with[anchor]
        drawn = (images[rng.randrange(len(images))] for _ in itertools.count())
        return _first(count, (image for image in drawn if not self._coco.objects[image] >> target & 1))

    def _draw_distractors(self, anchor: int, count: int, rng: random.Random) -> list[int]:
        drawn = (rng.randrange(len(self._coco.paths)) for _ in itertools.count())
        return _first(count, (image for image in drawn if not self._coco.objects[image] >> anchor & 1))


def _first(count: int, images: Iterator[int]) -> list[int]:
    """The first different ones."""
    found: dict[int, None] = {}
    while len(found) < count:
        found[next(images)] = None
    return list(found)


def _images_by_object(coco: CocoImages) -> list[list[int]]:
    images: list[list[int]] = [[] for _ in coco.names]
    for image, objects in enumerate(coco.objects):
        for each in _members(objects):
            images[each].append(image)
    return images


def _count_pairs(coco: CocoImages) -> dict[tuple[int, int], int]:
    """Images that show both, by pair in either order."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for objects, number in Counter(coco.objects).items():
        for pair in itertools.permutations(_members(objects), 2):
            counts[pair] += number
    return counts


def _members(objects: int) -> list[int]:
    return [index for index in range(objects.bit_length()) if objects >> index & 1]
