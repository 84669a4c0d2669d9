"""The resize rule against transformers' own, over thousands of sizes."""

import random
from typing import Any

import pytest
from PIL import Image

from rope_gain import wheel_guard
from server.checkpoint import ImageRule
from server.prompt.image_tokens import count_image_tokens, smart_resize

RULES = {
    "miniature": ImageRule(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128),
    "qwen2.5-vl": ImageRule(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
    "qwen3-vl": ImageRule(patch_size=16, merge_size=2, min_pixels=65536, max_pixels=16777216),
}


def sizes(count: int) -> list[tuple[int, int]]:
    """Half of them spread over magnitudes, half next to multiples of the common factors, where rounding turns."""
    chance = random.Random(0)
    spread = [(round(2 ** chance.uniform(0, 13)), round(2 ** chance.uniform(0, 13))) for _ in range(count // 2)]
    edges = [
        (max(1, 14 * chance.randrange(200) + chance.randrange(-1, 2)), max(1, 8 * chance.randrange(200) + 4))
        for _ in range(count // 2)
    ]
    return spread + edges


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_equals_transformers_over_thousands_of_sizes(rule: ImageRule) -> None:
    wheel_guard.install()
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

    refused = 0
    for height, width in sizes(6000):
        arguments = (height, width, rule.patch_size * rule.merge_size, rule.min_pixels, rule.max_pixels)
        try:
            expected = reference(*arguments)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="more than 200 times"):
                smart_resize(height, width, rule)
        else:
            assert smart_resize(height, width, rule) == expected, (height, width)
    assert 0 < refused < 1000


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 3), (31, 33), (40, 40), (127, 129), (600, 3), (500, 300)])
def test_equals_the_miniature_image_processor(processor: Any, size: tuple[int, int]) -> None:
    width, height = size
    grid = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0]

    assert count_image_tokens(height, width, RULES["miniature"]) == grid.prod().item() // 4
