"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images in any size, as rows of patches, and M-RoPE positions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from distill.data.patches import Patches
from distill.families.family import Family, RopeIndex

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QwenVl(Family):
    """The families that LAid's paper trains, and those built alike."""

    architectures = (
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
    )
    processors = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
    vision = ("visual",)

    def preprocess(self, processor: Any, images: Mapping[bytes, Image.Image]) -> list[Patches]:
        """Patches [P, values] of each image, and its grid in patches."""
        processed = processor.image_processor(images=list(images.values()), return_tensors="pt")
        grids = processed["image_grid_thw"]
        pixels = processed["pixel_values"].split(grids.prod(dim=1).tolist())
        # Copies: a view would keep the whole batch in memory for as long as one image is cached.
        return [
            Patches(
                key=key,
                pixel_values=patches.clone(),
                grid_3=grid,
                placeholder=processor.replace_image_token(processed, index),
            )
            for index, (key, patches, grid) in enumerate(zip(images, pixels, grids, strict=True))
        ]

    def rope_index(self, model: "PreTrainedModel") -> RopeIndex:
        """The model's own."""
        rope_index: RopeIndex = model.base_model.get_rope_index
        return rope_index

    def decoder_positions(self, position_ids_ABT: Tensor) -> Tensor:
        """All axes."""
        return position_ids_ABT

    def encode(self, model: "PreTrainedModel", images: Sequence[Patches]) -> list[Tensor]:
        """By `get_image_features`; Qwen3-VL's deepstack features are further levels."""
        pixel_values = torch.cat([image.pixel_values for image in images]).to(model.device)
        grids = torch.stack([image.grid_3 for image in images]).to(model.device)
        encoded = model.get_image_features(pixel_values, grids)
        levels = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or ())]
        # Stacked, so copied: a view would keep the whole batch in memory for as long as one image is cached.
        return [torch.stack(of_image) for of_image in zip(*levels, strict=True)]

    def vision_output(self, features: Sequence[Tensor]) -> BaseModelOutputWithDeepstackFeatures:
        """By level, and there by image."""
        levels = [tuple(level) for level in zip(*(of_image.unbind() for of_image in features), strict=True)]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=levels[0], deepstack_features=levels[1:])
