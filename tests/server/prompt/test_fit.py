"""Fitting by each family's own rule: just enough, evenly, and never an image of an earlier turn."""

import random

import pytest

from server.families import ImageRule
from server.media.images import ImageSize
from server.prompt.fit import fit_images
from tests.server.families.rules import RULES


def random_sizes(seed: int) -> list[ImageSize]:
    chance = random.Random(seed)
    return [
        ImageSize(width=chance.randrange(50, 4000), height=chance.randrange(50, 4000))
        for _ in range(chance.randrange(2, 12))
    ]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seed", range(20))
def test_fits_and_says_what_it_costs(rule: ImageRule, seed: int) -> None:
    sizes = random_sizes(seed)
    first = seed % 3
    tokens = [rule.count(size) for size in sizes]
    smallest = fit_images(sizes, rule, first=first, max_image_tokens=0)
    room = (sum(tokens) + sum(smallest.image_tokens)) // 2

    fit = fit_images(sizes, rule, first=first, max_image_tokens=room)

    assert sum(smallest.image_tokens) <= sum(fit.image_tokens) <= room
    assert all(place >= first for place in fit.sizes)
    for place, size in enumerate(sizes):
        assert fit.image_tokens[place] == rule.count(fit.sizes.get(place, size))
        assert (place in fit.sizes) is (fit.image_tokens[place] < tokens[place])


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("num_images", [1, 10, 100])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_just_enough(name: str, num_images: int, share: float) -> None:
    """Of equal images no more is lost than the step from one number of patches to the next on both sides."""
    rule, sizes = RULES[name], [ImageSize(width=1024, height=768)] * num_images
    room = round(share * sum(rule.count(size) for size in sizes))

    fit = fit_images(sizes, rule, first=0, max_image_tokens=room)

    assert 0.9 * room < sum(fit.image_tokens) <= room
    assert len(set(fit.sizes.values())) == 1


def test_each_image_gives_up_the_same_share() -> None:
    rule = RULES["qwen2.5-vl"]
    # The last is more than the model sees of it: the file's size does not count.
    sizes = [ImageSize(width=560, height=560), ImageSize(width=840, height=560), ImageSize(width=8000, height=8000)]
    tokens = [rule.count(size) for size in sizes]

    fit = fit_images(sizes, rule, first=0, max_image_tokens=sum(tokens) // 2)

    shares = [new / old for new, old in zip(fit.image_tokens, tokens, strict=True)]
    assert max(shares) - min(shares) < 0.1


def test_a_share_of_nothing_leaves_all_as_they_are() -> None:
    rule, sizes = RULES["qwen2.5-vl"], [ImageSize(width=56, height=56)] * 3

    fit = fit_images(sizes, rule, first=0, max_image_tokens=1)

    assert fit.sizes == {}
    assert fit.image_tokens == (4, 4, 4)
