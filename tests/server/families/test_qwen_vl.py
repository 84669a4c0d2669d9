"""The resize rule against transformers' own, over thousands of sizes."""

from typing import Any

import pytest
from PIL import Image

from server.families.qwen_vl import QwenRule
from server.media.images import ImageSize
from tests.server.families.sizes import sizes

RULES = {
    "miniature": QwenRule(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128),
    "qwen2.5-vl": QwenRule(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
    "qwen3-vl": QwenRule(patch_size=16, merge_size=2, min_pixels=65536, max_pixels=16777216),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_equals_transformers_over_thousands_of_sizes(rule: QwenRule) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

    refused = 0
    for width, height in sizes(6000):
        size = ImageSize(width=width, height=height)
        try:
            expected = reference(height, width, rule.factor, rule.min_pixels, rule.max_pixels)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="more than 200 times"):
                rule.resize(size)
        else:
            resized = rule.resize(size)
            assert (resized.height, resized.width) == expected, size
    assert 0 < refused < 1000


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 3), (31, 33), (40, 40), (127, 129), (600, 3), (500, 300)])
def test_equals_the_miniature_image_processor(processor: Any, size: tuple[int, int]) -> None:
    width, height = size
    grid = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0]

    assert RULES["miniature"].count(ImageSize(width=width, height=height)) == grid.prod().item() // 4
