"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: an image is brought to a multiple of its patches, each of which is a token."""

import math
from dataclasses import dataclass

from server.families.image_rule import ImageRule
from server.families.processor_files import ProcessorFiles, require
from server.media.images import ImageSize

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, kw_only=True)
class QwenRule:
    """transformers' `qwen2_vl.image_processing_qwen2_vl.smart_resize`."""

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    placeholder: str = "<|image_pad|>"

    @property
    def tokens(self) -> tuple[str, ...]:
        """Start and end stand in the chat template."""
        return (self.placeholder,)

    @property
    def factor(self) -> int:
        """Side of what becomes one token, in pixels."""
        return self.patch_size * self.merge_size

    def count(self, size: ImageSize) -> int:
        """See `ImageRule`."""
        resized = self.resize(size)
        return resized.pixels // self.factor**2

    def shrink(self, size: ImageSize, scale: float) -> ImageSize:
        """A multiple of patches, so that the model takes the image as it is."""
        seen = self.resize(size)
        scale = max(scale, min(1.0, math.sqrt(self.min_pixels / seen.pixels)))
        width, height = (
            max(self.factor, math.floor(side * scale / self.factor) * self.factor) for side in (seen.width, seen.height)
        )
        target = self.resize(ImageSize(width=width, height=height))  # over the minimum, where rounding went under it
        return ImageSize(width=min(size.width, target.width), height=min(size.height, target.height))

    def resize(self, size: ImageSize) -> ImageSize:
        """The size to which the model's processor brings an image.

        Multiples of patch times merge, between min and max pixels, aspect ratio kept as well as that allows.

        Raises:
            ValueError: the sides differ by a factor of more than 200.
        """
        height, width, factor = size.height, size.width, self.factor
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise ValueError(
                f"{width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other, "
                "which the model does not accept"
            )
        resized_height = round(height / factor) * factor
        resized_width = round(width / factor) * factor
        if resized_height * resized_width > self.max_pixels:
            beta = math.sqrt((height * width) / self.max_pixels)
            resized_height = max(factor, math.floor(height / beta / factor) * factor)
            resized_width = max(factor, math.floor(width / beta / factor) * factor)
        elif resized_height * resized_width < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (height * width))
            resized_height = math.ceil(height * beta / factor) * factor
            resized_width = math.ceil(width * beta / factor) * factor
        return ImageSize(width=resized_width, height=resized_height)


def read_qwen_vl(files: ProcessorFiles) -> ImageRule:
    """Sizes as transformers' `Qwen2VLImageProcessor.__init__` resolves them; the patch from config.json, as in vLLM.

    Raises:
        CheckpointError: a key is missing, or images are not resized.
    """
    size = dict(files.image_processor.get("size") or {})
    for edge, alias in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        if files.image_processor.get(alias) is not None:
            size[edge] = files.image_processor[alias]
    if files.image_processor.get("do_resize", True) is not True:
        raise files.error(files.image_source, "do_resize false; the gateway counts resized images only")
    return QwenRule(
        patch_size=int(files.vision("patch_size")),
        merge_size=int(files.vision("spatial_merge_size")),
        min_pixels=int(require(size, "shortest_edge", files.path / files.image_source)),
        max_pixels=int(require(size, "longest_edge", files.path / files.image_source)),
        placeholder=files.token("image_token") or "<|image_pad|>",
    )
