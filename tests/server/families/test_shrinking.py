"""What every family promises of a smaller image."""

import pytest

from server.families import ImageRule
from server.families.internvl import InternVLRule
from server.families.llava_onevision import LlavaOnevisionRule
from server.families.qwen_vl import QwenRule
from server.media.images import ImageSize
from tests.server.families.sizes import sizes

RULES: dict[str, ImageRule] = {
    "qwen2.5-vl": QwenRule(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
    "qwen3-vl": QwenRule(patch_size=16, merge_size=2, min_pixels=65536, max_pixels=16777216),
    "internvl3": InternVLRule(
        tile=ImageSize(width=448, height=448),
        min_tiles=1,
        max_tiles=12,
        tokens_per_tile=256,
        placeholder="<IMG_CONTEXT>",
        start="<img>",
        end="</img>",
    ),
    "llava-onevision": LlavaOnevisionRule(
        tile=384,
        features=27,
        skipped=0,
        grids=tuple(ImageSize(width=384 * i, height=384 * j) for j in range(1, 7) for i in range(1, 7)),
        placeholder="<image>",
    ),
}
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
