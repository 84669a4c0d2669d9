"""Images as a vision tower takes them, each distinct image preprocessed once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from distill.cache import ByteCache


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """One preprocessed image."""

    key: bytes
    """Digest of the image's content: equal images have equal keys."""
    pixel_values: Tensor
    """Patches or tiles by their values, in the layout of the family's image processor."""
    grid_3: Tensor
    """Time, height and width in patches; of tiles their number, and height and width in pixels."""
    placeholder: str
    """The image's tokens as text: what stands for it in the prompt."""


Preprocess = Callable[[Mapping[bytes, Image.Image]], list[Patches]]
"""Runs a processor's image part on at least one image, each under its key, in their order."""


class PatchMaker:
    """Preprocesses the images that it has not seen lately."""

    def __init__(self, preprocess: Preprocess, capacity_bytes: int) -> None:
        self._preprocess = preprocess
        self._cache: ByteCache[bytes, Patches] = ByteCache(capacity_bytes)

    def __call__(self, images: Sequence[Image.Image]) -> list[Patches]:
        """One entry per image, in order; equal images share theirs."""
        keys = [_content_key(image) for image in images]
        found = {key: patches for key in set(keys) if (patches := self._cache.get(key)) is not None}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        for patches in self._preprocess(missing) if missing else ():
            found[patches.key] = patches
            self._cache.put(patches.key, patches, patches.pixel_values.nbytes)
        return [found[key] for key in keys]


def _content_key(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(f"{image.mode}/{image.size}/".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()
