"""InternVL3 in its Hugging Face form: images as tiles of one size, and one position a token."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from distill.data.patches import Patches
from distill.families.family import Family, RopeIndex

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InternVl(Family):
    """A Qwen2 decoder; each tile of an image becomes the same number of tokens."""

    architectures = ("InternVLForConditionalGeneration",)
    processors = ("InternVLProcessor",)
    vision = ("vision_tower", "multi_modal_projector")

    def limit_tiles(self, processor: Any, max_tiles: int) -> None:
        """Sets what is saved with the processor, and so holds wherever the student runs."""
        processor.image_processor.max_patches = max_tiles

    def preprocess(self, processor: Any, images: Mapping[bytes, Image.Image]) -> list[Patches]:
        """Tiles [P, 3, height, width] of each image; the grid is their number and their height and width in pixels."""
        # What the processor's own call hands on, whatever the image processor is configured with: it cuts images into
        # tiles by default.
        defaults = processor.valid_processor_kwargs._defaults["images_kwargs"]
        processed = processor.image_processor(images=list(images.values()), return_tensors="pt", **defaults)
        pixels = processed["pixel_values"].split(processed["num_patches"].tolist())
        # Copies: a view would keep the whole batch in memory for as long as one image is cached.
        return [
            Patches(
                key=key,
                pixel_values=tiles.clone(),
                grid_3=torch.tensor([len(tiles), *tiles.shape[-2:]]),
                placeholder=processor.replace_image_token(processed, index),
            )
            for index, (key, tiles) in enumerate(zip(images, pixels, strict=True))
        ]

    def rope_index(self, model: "PreTrainedModel") -> RopeIndex:  # noqa: ARG002  # the same for every model
        """One axis, the token's index, in the place of all three."""
        return _count_tokens

    def decoder_positions(self, position_ids_ABT: Tensor) -> Tensor:
        """[B, T]: all axes are the token's index."""
        return position_ids_ABT[0]

    def encode(self, model: "PreTrainedModel", images: Sequence[Patches]) -> list[Tensor]:
        """By `get_image_features`, tile by tile; one level."""
        tiles = torch.cat([image.pixel_values for image in images]).to(model.device)
        features = model.get_image_features(tiles).pooler_output.split([len(image.pixel_values) for image in images])
        # Copies, as above.
        return [of_image.flatten(0, 1)[None].clone() for of_image in features]

    def vision_output(self, features: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        """All image tokens in one row, which the model puts into its placeholders in their order."""
        return BaseModelOutputWithPooling(pooler_output=torch.cat(list(features), dim=1))


def _count_tokens(input_ids_BT: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    batch_size, num_tokens = input_ids_BT.shape
    positions_3BT = torch.arange(num_tokens, device=input_ids_BT.device).expand(3, batch_size, -1)
    return positions_3BT, torch.zeros(batch_size, 1, dtype=torch.long, device=input_ids_BT.device)
