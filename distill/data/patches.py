"""Images as a vision tower takes them, each distinct image preprocessed once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from distill.cache import ByteCache


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """One preprocessed image."""

    key: bytes
    """Digest of the image's content: equal images have equal keys."""
    pixel_values_PC: Tensor
    """Patches by channels, in the layout of the Qwen-VL image processors."""
    grid_3: Tensor
    """Time, height and width in patches."""
    placeholder: str
    """The image's tokens as text: what stands for it in the prompt."""


class PatchMaker:
    """Runs a processor's image part on the images that it has not seen lately."""

    def __init__(self, processor: Any, capacity_bytes: int) -> None:
        self._processor = processor
        self._cache: ByteCache[bytes, Patches] = ByteCache(capacity_bytes)

    def __call__(self, images: Sequence[Image.Image]) -> list[Patches]:
        """One entry per image, in order; equal images share theirs."""
        keys = [_content_key(image) for image in images]
        found = {key: patches for key in set(keys) if (patches := self._cache.get(key)) is not None}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        for patches in self._process(missing):
            found[patches.key] = patches
            self._cache.put(patches.key, patches, patches.pixel_values_PC.nbytes)
        return [found[key] for key in keys]

    def _process(self, images: dict[bytes, Image.Image]) -> list[Patches]:
        if not images:
            return []
        processed = self._processor.image_processor(images=list(images.values()), return_tensors="pt")
        grids = processed["image_grid_thw"]
        pixels = processed["pixel_values"].split(grids.prod(dim=1).tolist())
        # Copies: a view would keep the whole batch in memory for as long as one image is cached.
        return [
            Patches(
                key=key,
                pixel_values_PC=pixels_PC.clone(),
                grid_3=grid,
                placeholder=self._processor.replace_image_token(processed, index),
            )
            for index, (key, pixels_PC, grid) in enumerate(zip(images, pixels, grids, strict=True))
        ]


def _content_key(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(f"{image.mode}/{image.size}/".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()
