"""What every family promises of a smaller image."""

import pytest

from server.families import ImageRule
from server.families.qwen_vl import QwenRule
from server.media.images import ImageSize
from tests.server.families.rules import RULES
from tests.server.families.sizes import sizes

# A shape that no family refuses.
SIZES = [ImageSize(width=w, height=h) for w, h in sizes(900) if max(w, h) <= 100 * min(w, h)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("scale", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_a_smaller_image_is_no_larger(rule: ImageRule, scale: float) -> None:
    for size in SIZES:
        smaller = rule.shrink(size, scale)

        assert 1 <= smaller.width <= size.width, size
        assert 1 <= smaller.height <= size.height, size


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_shape_stays(rule: ImageRule) -> None:
    """As well as whole patches and pixels allow: to a twelfth for an image of ordinary shape and size."""
    for size in SIZES:
        smaller = rule.shrink(size, 0.5)
        if min(smaller.width, smaller.height) >= 336:
            kept = (smaller.width / smaller.height) / (size.width / size.height)
            assert 11 / 12 < kept < 13 / 12, (size, smaller)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_a_smaller_qwen_image_is_taken_as_it_is(name: str) -> None:
    rule = RULES[name]
    assert isinstance(rule, QwenRule)
    for size in SIZES:
        if size.pixels > 8 * rule.min_pixels and min(size.width, size.height) > 2 * rule.factor:
            smaller = rule.shrink(size, 0.5)
            assert rule.resize(smaller) == smaller, size


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("qwen2.5-vl", (1024, 1024), [4, 289, 1225]),
        ("internvl3", (1344, 1344), [258, 1282, 2562]),
        ("llava-onevision", (1152, 1152), [1485, 3699, 7371]),
    ],
)
def test_tokens_at_no_half_and_full_scale(name: str, size: tuple[int, int], tokens: list[int]) -> None:
    rule, image = RULES[name], ImageSize(width=size[0], height=size[1])

    assert [rule.count(rule.shrink(image, scale)) for scale in (0.0, 0.5, 1.0)] == tokens
