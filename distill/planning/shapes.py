"""The sizes of a model, from its configuration alone: no weight is read, none is made."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.loading import resolve_path
from distill.recipe import ModelConfig

SHAPES_FOLDER = Path(__file__).parents[1] / "recipes" / "shapes"
"""One config.json for each Hub name of the recipes: the facts that give the sizes, nothing else."""

# `max_patches` of the family's processors, which are not read here.
_DEFAULT_TILES = 12

_BYTES = {"float32": 4, "bfloat16": 2}
_VISION = ("model.visual.", "model.vision_tower.", "model.multi_modal_projector.")
_VISION_BLOCKS = ("model.visual.blocks.", "model.vision_tower.encoder.")


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes of the text decoder."""

    num_layers: int
    hidden: int
    mlp: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    vocabulary: int
    has_head_norms: bool
    """Whether queries and keys pass a norm of their own before the rotation, as in Qwen3."""

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_size

    @property
    def key(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_key_value_heads * self.head_size


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The sizes of the vision tower."""

    depth: int
    hidden: int
    mlp: int
    is_gated: bool
    """Three matrices in the MLP and not two."""
    patch_pixels: int
    merge: int
    """Patches on each side of the square that becomes one token."""
    patch_values: int
    """Numbers in one patch as the image processor gives it."""
    window_patches: int | None
    """Patches in an attention window of the blocks that have windows; a tile is one too."""
    num_full_blocks: int
    feature_layers: int
    """Hidden vectors per image token: 1, and one more for each layer of DeepStack."""
    tile_pixels: int | None
    """Side of the squares that every image is cut into, where it is."""
    max_tiles: int = 1
    """Of one image, its thumbnail aside."""


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters, tied ones counted once."""

    total: int
    vision: int
    """The tower and what projects its output."""
    vision_blocks: int
    embeddings: int
    head: int
    """0 where the head is the embeddings."""
    largest: int
    """Of the largest single tensor."""
    linear: int
    """Weights of linear layers, the head left out: what quantization takes."""

    @property
    def layers(self) -> int:
        """Everything in the decoder but the embeddings and the head."""
        return self.total - self.vision - self.embeddings - self.head


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the arithmetic needs to know of one model."""

    path: str
    family: str
    """`model_type` in config.json."""
    value_bytes: int
    decoder: DecoderShape
    vision: VisionShape
    parameters: ParameterCounts

    @property
    def feature_values(self) -> int:
        """Numbers that one image token brings into the decoder."""
        return self.vision.feature_layers * self.decoder.hidden


def load_shape(model: ModelConfig, key: str) -> ModelShape:
    """The sizes of the model that a recipe names.

    Parameters are counted on transformers' own class, built on the meta device, where tensors have no memory.

    Args:
        key: the model's place in the recipe, for messages.

    Raises:
        ValueError: there is no config.json for the path, or the family is not known here.
    """
    config = _load_config(model.path, key)
    if config.model_type not in _VISION_READERS:
        known = ", ".join(_VISION_READERS)
        raise ValueError(f"{key}: {model.path} is a {config.model_type!r}, expected one of {known}")
    return ModelShape(
        path=model.path,
        family=config.model_type,
        value_bytes=_BYTES[model.dtype],
        decoder=decoder_shape(config.get_text_config()),
        vision=_vision_shape(config, model),
        parameters=_count_parameters(config),
    )


def _vision_shape(config: Any, model: ModelConfig) -> VisionShape:
    shape = _VISION_READERS[config.model_type](config.vision_config)
    return shape if model.max_tiles is None else replace(shape, max_tiles=model.max_tiles)


def _load_config(path: str, key: str) -> Any:
    from transformers import AutoConfig

    shape_file = SHAPES_FOLDER / f"{path.replace('/', '--')}.json"
    if shape_file.is_file():
        return AutoConfig.for_model(**json.loads(shape_file.read_text(encoding="utf-8")))
    try:
        return AutoConfig.from_pretrained(resolve_path(path), local_files_only=True)
    except (OSError, ValueError) as error:
        names = ", ".join(sorted(file.stem.replace("--", "/") for file in SHAPES_FOLDER.glob("*.json")))
        raise ValueError(
            f"{key}: {path!r}, expected a folder with config.json, a model that is on this machine, or one of {names}"
        ) from error


def decoder_shape(text: Any) -> DecoderShape:
    """The sizes in a text configuration of transformers."""
    return DecoderShape(
        num_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        num_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocabulary=text.vocab_size,
        has_head_norms=text.model_type.startswith("qwen3"),
    )


def _qwen2_vision(vision: Any) -> VisionShape:
    """Its `hidden_size` is the decoder's."""
    return VisionShape(
        depth=vision.depth,
        hidden=vision.embed_dim,
        mlp=int(vision.embed_dim * vision.mlp_ratio),
        is_gated=False,
        patch_pixels=vision.patch_size,
        merge=vision.spatial_merge_size,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        window_patches=None,
        num_full_blocks=vision.depth,
        feature_layers=1,
        tile_pixels=None,
    )


def _qwen2_5_vision(vision: Any) -> VisionShape:
    return VisionShape(
        depth=vision.depth,
        hidden=vision.hidden_size,
        mlp=vision.intermediate_size,
        is_gated=True,
        patch_pixels=vision.patch_size,
        merge=vision.spatial_merge_size,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        window_patches=(vision.window_size // vision.patch_size) ** 2,
        num_full_blocks=len(vision.fullatt_block_indexes),
        feature_layers=1,
        tile_pixels=None,
    )


def _qwen3_vision(vision: Any) -> VisionShape:
    return VisionShape(
        depth=vision.depth,
        hidden=vision.hidden_size,
        mlp=vision.intermediate_size,
        is_gated=False,
        patch_pixels=vision.patch_size,
        merge=vision.spatial_merge_size,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        window_patches=None,
        num_full_blocks=vision.depth,
        feature_layers=1 + len(vision.deepstack_visual_indexes),
        tile_pixels=None,
    )


def _internvl_vision(vision: Any) -> VisionShape:
    """The merge of 2 is `downsample_ratio` 0.5 of the family; tiles are cut as its processor does by default."""
    tile_patches = (vision.image_size[0] // vision.patch_size[0]) ** 2
    return VisionShape(
        depth=vision.num_hidden_layers,
        hidden=vision.hidden_size,
        mlp=vision.intermediate_size,
        is_gated=False,
        patch_pixels=vision.patch_size[0],
        merge=2,
        patch_values=vision.num_channels * vision.patch_size[0] ** 2,
        window_patches=tile_patches,
        num_full_blocks=0,
        feature_layers=1,
        tile_pixels=vision.image_size[0],
        max_tiles=_DEFAULT_TILES,
    )


_VISION_READERS = {
    "qwen2_vl": _qwen2_vision,
    "qwen2_5_vl": _qwen2_5_vision,
    "qwen3_vl": _qwen3_vision,
    "internvl": _internvl_vision,
}


def _count_parameters(config: Any) -> ParameterCounts:
    import torch
    from torch import nn
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return ParameterCounts(
        total=sum(sizes.values()),
        vision=sum(size for name, size in sizes.items() if name.startswith(_VISION)),
        vision_blocks=sum(size for name, size in sizes.items() if name.startswith(_VISION_BLOCKS)),
        embeddings=sum(size for name, size in sizes.items() if name.endswith("embed_tokens.weight")),
        head=sizes.get("lm_head.weight", 0),
        largest=max(sizes.values()),
        linear=sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        ),
    )
