"""A tiny random model of every family, in which attention, and so the gain, matters. One row a family in `TINY`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from distill.miniature.items import make_item
from distill.miniature.processor import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IMAGE_PAD,
    MERGE_SIZE,
    PATCH_SIZE,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    make_processor,
    make_tokenizer,
)
from rope_gain.families import Family

NUM_LAYERS, NUM_HEADS, NUM_KEY_VALUE_HEADS = 2, 4, 2
# The smallest that vLLM's attention takes on CPU.
HEAD_SIZE = 32
HIDDEN_SIZE = NUM_HEADS * HEAD_SIZE
MROPE_SECTION = [4, 6, 6]
ROPE_THETA = 10_000.0

CHUNKED = [axis for axis, size in enumerate(MROPE_SECTION) for _ in range(size)]
# Time, height and width in turn, as far as the sections of height and width reach; time has the rest.
INTERLEAVED = [0, 1, 2] * 5 + [0]
INTERLEAVED_SECTION = [6, 5, 5]


@dataclasses.dataclass(frozen=True)
class Tiny:
    """How a family's tiny model is made."""

    make_config: Callable[[Any], Any]
    """From its tokenizer."""

    make_processor: Callable[[], Any] = make_processor
    """A tokenizer for a text model."""

    axes: tuple[int, ...] = (0,) * (HEAD_SIZE // 2)
    """The M-RoPE axis of each rotary pair, written down by hand; all 0 where there is one axis."""


def build_tiny(family: Family, seed: int = 0) -> tuple[Any, Any]:
    """(model, processor): float32, in evaluation mode, and a plain random model made attentive.

    Queries, keys and the final norm are scaled up: a plain random model attends evenly and no gain would show.
    """
    tiny = TINY[family.architecture]
    processor = tiny.make_processor()
    tokenizer = tokenizer_of(processor)
    torch.manual_seed(seed)
    model = getattr(transformers, family.architecture)(tiny.make_config(tokenizer)).float().eval()
    decoder = model.get_submodule(family.decoder)
    with torch.no_grad():
        for layer in decoder.layers:
            sharpen(layer.self_attn)
        decoder.norm.weight.mul_(6)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def sharpen(attention: Any) -> None:
    if hasattr(attention, "q_norm"):
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.normal_(2, 0.4)
        return
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(6)
        projection.bias.normal_()


def tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def has_images(processor: Any) -> bool:
    return hasattr(processor, "image_processor")


def tiny_messages(processor: Any, images: int) -> Any:
    """A haystack item's messages; without the images for a text model, which gets a longer text."""
    if has_images(processor):
        return make_item(images, images, "open").messages()
    text = " ".join(make_item(seed, images, "open").question for seed in range(images))
    return [{"role": "user", "content": text}]


def tiny_inputs(processor: Any, *, images: tuple[int, ...]) -> Any:
    """Prompts with these numbers of images, padded on the left."""
    padding = {"processor_kwargs": {"padding": True}} if has_images(processor) else {"padding": True}
    return processor.apply_chat_template(
        [tiny_messages(processor, number) for number in images],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        **padding,
    )


def text_settings(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    return {
        "vocab_size": 512,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KEY_VALUE_HEADS,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    } | settings


def qwen2_settings(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    return text_settings(tokenizer, max_window_layers=NUM_LAYERS, **settings)


def chunked_settings(tokenizer: Any) -> dict[str, Any]:
    parameters = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": MROPE_SECTION}
    return qwen2_settings(tokenizer, rope_parameters=parameters)


def image_tokens(tokenizer: Any) -> dict[str, Any]:
    names = {"image": IMAGE_PAD, "video": VIDEO_PAD, "vision_start": VISION_START, "vision_end": VISION_END}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen2_config(tokenizer: Any) -> Any:
    return transformers.Qwen2Config(**qwen2_settings(tokenizer))


def qwen3_config(tokenizer: Any) -> Any:
    return transformers.Qwen3Config(**text_settings(tokenizer, head_dim=HEAD_SIZE, max_window_layers=NUM_LAYERS))


def qwen2_vl_config(tokenizer: Any) -> Any:
    return transformers.Qwen2VLConfig(
        text_config=chunked_settings(tokenizer),
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "hidden_size": HIDDEN_SIZE,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
        },
        tie_word_embeddings=True,
        **image_tokens(tokenizer),
    )


def qwen2_5_vl_config(tokenizer: Any) -> Any:
    return transformers.Qwen2_5_VLConfig(
        text_config=chunked_settings(tokenizer),
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 128,
            "out_hidden_size": HIDDEN_SIZE,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "window_size": 2 * PATCH_SIZE * MERGE_SIZE,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True,
        **image_tokens(tokenizer),
    )


def qwen3_vl_config(tokenizer: Any) -> Any:
    parameters = {
        "rope_type": "default",
        "rope_theta": ROPE_THETA,
        "mrope_section": INTERLEAVED_SECTION,
        "mrope_interleaved": True,
    }
    return transformers.Qwen3VLConfig(
        text_config=text_settings(tokenizer, head_dim=HEAD_SIZE, rope_parameters=parameters),
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 128,
            "out_hidden_size": HIDDEN_SIZE,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "num_position_embeddings": 16,
            # One for each decoder layer.
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True,
        **image_tokens(tokenizer),
    )


def internvl_config(tokenizer: Any) -> Any:
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **qwen2_settings(tokenizer)},
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "image_size": (32, 32),
            "patch_size": (8, 8),
        },
        image_token_id=tokenizer.context_image_token_id,
        # 4x4 patches, of which the projector merges 2x2.
        image_seq_length=4,
        downsample_ratio=0.5,
    )


def llava_onevision_config(tokenizer: Any) -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **qwen2_settings(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID_PINPOINTS,
        tie_word_embeddings=True,
    )


GRID_PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]


def text_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def renamed_tokenizer(**tokens: str) -> Any:
    """The miniature tokenizer with a family's own special tokens, each known by an attribute's name."""
    backend = make_tokenizer().backend_tokenizer
    backend.add_special_tokens(list(tokens.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        extra_special_tokens=tokens,
        clean_up_tokenization_spaces=False,
    )


def qwen2_vl_processor() -> Any:
    parts = make_processor()
    return transformers.Qwen2VLProcessor(
        parts.image_processor, parts.tokenizer, parts.video_processor, chat_template=CHAT_TEMPLATE
    )


def qwen3_vl_processor() -> Any:
    parts = make_processor()
    sizes = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "size": parts.image_processor.size}
    return transformers.Qwen3VLProcessor(
        parts.image_processor,
        parts.tokenizer,
        transformers.Qwen3VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def internvl_processor() -> Any:
    tokenizer = renamed_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 32, "width": 32}
    return transformers.InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace(VISION_START + IMAGE_PAD + VISION_END, "<IMG_CONTEXT>\\n"),
    )


def llava_onevision_processor() -> Any:
    tokenizer = renamed_tokenizer(image_token="<image>", video_token="<video>")
    size = {"height": 32, "width": 32}
    return transformers.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=GRID_PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE.replace(VISION_START + IMAGE_PAD + VISION_END, "<image>\\n"),
    )


TINY = {
    "Qwen2ForCausalLM": Tiny(qwen2_config, text_tokenizer),
    "Qwen3ForCausalLM": Tiny(qwen3_config, text_tokenizer),
    "Qwen2VLForConditionalGeneration": Tiny(qwen2_vl_config, qwen2_vl_processor, tuple(CHUNKED)),
    "Qwen2_5_VLForConditionalGeneration": Tiny(qwen2_5_vl_config, make_processor, tuple(CHUNKED)),
    "Qwen3VLForConditionalGeneration": Tiny(qwen3_vl_config, qwen3_vl_processor, tuple(INTERLEAVED)),
    "InternVLForConditionalGeneration": Tiny(internvl_config, internvl_processor),
    "LlavaOnevisionForConditionalGeneration": Tiny(llava_onevision_config, llava_onevision_processor),
}
