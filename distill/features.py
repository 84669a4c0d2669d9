"""A vision tower that encodes each distinct image once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.cache import ByteCache
from distill.data.patches import Patches
from distill.families import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageFeatures:
    """Features of a batch's images by `get_image_features` of the model.

    A frozen tower runs without gradients and remembers the features of the images it saw last, so that an image
    that comes again, in this batch or a later one, costs nothing. A tower in training encodes each distinct image of
    the batch, with gradients.
    """

    def __init__(self, model: "PreTrainedModel", *, is_frozen: bool, capacity_bytes: int) -> None:
        self._model = model
        self._family = find_family(model)
        self._is_frozen = is_frozen
        self._cache: ByteCache[bytes, Tensor] = ByteCache(capacity_bytes)

    def __call__(self, images: Sequence[Patches]) -> list[Tensor]:
        """Features [levels, image tokens, hidden size] of each image, in order, on the model's device.

        Levels are those of `Family.encode`.
        """
        distinct = {image.key: image for image in images}
        if not self._is_frozen:
            features = self._encode(distinct)
        else:
            features = {key: found for key in distinct if (found := self._cache.get(key)) is not None}
            with torch.no_grad():
                new = self._encode({key: image for key, image in distinct.items() if key not in features})
            for key, features_LTD in new.items():
                features[key] = features_LTD
                self._cache.put(key, features_LTD, features_LTD.nbytes)
        return [features[image.key] for image in images]

    def _encode(self, images: dict[bytes, Patches]) -> dict[bytes, Tensor]:
        if not images:
            return {}
        return dict(zip(images, self._family.encode(self._model, list(images.values())), strict=True))
