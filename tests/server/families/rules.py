"""A rule of each family, with the numbers of its released checkpoints."""

from server.families import ImageRule
from server.families.internvl import InternVLRule
from server.families.llava_onevision import LlavaOnevisionRule
from server.families.qwen_vl import QwenRule
from server.media.images import ImageSize

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
