"""Makes the images of a request's last turn just small enough for the prompt to fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.families import ImageRule
from server.media.images import ImageSize

STEPS = 12
"""Of the bisection: a scale to within 1/4096."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What became of the images."""

    sizes: Mapping[int, ImageSize]
    """New sizes by the images' place in the prompt; those not named stay as they are, byte for byte."""
    image_tokens: tuple[int, ...]
    """Of every image of the prompt, after fitting."""


def fit_images(sizes: Sequence[ImageSize], rule: ImageRule, *, first: int, max_image_tokens: int) -> Fit:
    """Scales images by one common factor, found by bisection over the family's own rule.

    The factor applies to what the model sees of an image, not to what the client sent: each image gives up the same
    share of its detail, however large its file. No image falls below the family's smallest sensible size, so that the
    tokens may still be too many.

    Args:
        sizes: of all images of the prompt.
        rule: the family's.
        first: the first image that may be touched: those before it the engine has seen in earlier turns.
        max_image_tokens: what all images together should take at most.
    """
    before = sum(rule.count(size) for size in sizes[:first])

    def shrink(scale: float) -> dict[ImageSize, tuple[ImageSize, int]]:
        return {size: _cheaper(size, rule, scale) for size in set(sizes[first:])}

    def fits(shrunk: Mapping[ImageSize, tuple[ImageSize, int]]) -> bool:
        return before + sum(shrunk[size][1] for size in sizes[first:]) <= max_image_tokens

    found = shrink(0.0)
    low, high = 0.0, 1.0
    if fits(found):
        for _ in range(STEPS):
            middle = (low + high) / 2
            if fits(tried := shrink(middle)):
                low, found = middle, tried
            else:
                high = middle
    return Fit(
        sizes={place: found[size][0] for place, size in enumerate(sizes) if place >= first and found[size][0] != size},
        image_tokens=tuple(found[size][1] if place >= first else rule.count(size) for place, size in enumerate(sizes)),
    )


def _cheaper(size: ImageSize, rule: ImageRule, scale: float) -> tuple[ImageSize, int]:
    """The smaller size and its tokens; the image as it is where smaller would not be cheaper."""
    smaller = rule.shrink(size, scale)
    tokens, smaller_tokens = rule.count(size), rule.count(smaller)
    return (smaller, smaller_tokens) if smaller_tokens < tokens else (size, tokens)
