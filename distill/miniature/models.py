"""The miniature models' sizes, in the real Qwen2.5-VL architecture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.miniature.processor import (
    END_OF_TEXT,
    IM_END,
    IMAGE_PAD,
    MERGE_SIZE,
    PATCH_SIZE,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
)
from rope_gain import wheel_guard

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

MAX_POSITIONS = 2048
VISION_HIDDEN = 64

# Heads of 32, the smallest that vLLM's CPU attention takes; half of it in pairs for time, height and width.
MROPE_SECTION = [4, 6, 6]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What differs between the teacher and the base student."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    mlp: int


SIZES = {
    "teacher": Size(layers=3, hidden=128, heads=4, key_value_heads=2, mlp=384),
    "base": Size(layers=2, hidden=96, heads=3, key_value_heads=1, mlp=256),
}


def make_model(size: Size, tokenizer: Any, seed: int) -> "Qwen2_5_VLForConditionalGeneration":
    """A randomly initialised float32 model of this size, fit for `make_processor`'s tokens and images."""
    wheel_guard.install()
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            # A multiple of 64, as in the real family: the vocabulary is larger than the tokenizer.
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_value_heads,
            "max_position_embeddings": MAX_POSITIONS,
            "max_window_layers": size.layers,
            "rms_norm_eps": 1e-6,
            # The family's 0.02 suits thousands of dimensions; here it would leave attention flat for long.
            "initializer_range": size.hidden**-0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": MROPE_SECTION},
            "bos_token_id": token_id(END_OF_TEXT),
            "eos_token_id": token_id(IM_END),
            "pad_token_id": token_id(END_OF_TEXT),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": VISION_HIDDEN,
            "num_heads": 4,
            "intermediate_size": 128,
            "out_hidden_size": size.hidden,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 2,
            "window_size": 2 * PATCH_SIZE * MERGE_SIZE,
            "fullatt_block_indexes": [1],
            "initializer_range": VISION_HIDDEN**-0.5,
        },
        image_token_id=token_id(IMAGE_PAD),
        video_token_id=token_id(VIDEO_PAD),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = token_id(IM_END)
    model.generation_config.pad_token_id = token_id(END_OF_TEXT)
    return model
