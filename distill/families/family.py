"""What differs between the families that can be distilled."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from distill.data.patches import Patches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RopeIndex = Callable[..., tuple[Tensor, Tensor]]
"""Qwen-VL's `get_rope_index`: positions [3, B, T] of token ids, and what the first generated token adds to them."""


class Family(ABC):
    """How a family's images become patches and features, and where its tokens lie."""

    architectures: tuple[str, ...]
    """Classes in transformers, as config.json names them."""

    processors: tuple[str, ...]
    """Their processors' classes."""

    vision: tuple[str, ...]
    """The parts of the base model that make image features."""

    def freeze_vision(self, model: "PreTrainedModel") -> None:
        """Leaves the parts that make image features out of the training."""
        for name in self.vision:
            model.base_model.get_submodule(name).requires_grad_(False)

    def limit_tiles(self, processor: Any, max_tiles: int) -> None:
        """Lets the processor cut an image into so many tiles at most.

        Raises:
            ValueError: the family does not cut images.
        """
        raise ValueError(f"max_tiles: {max_tiles}, expected none: {type(processor).__name__} does not cut images")

    @abstractmethod
    def preprocess(self, processor: Any, images: Mapping[bytes, Image.Image]) -> list[Patches]:
        """Runs the processor's image part on at least one image, each under its content's key, in their order."""

    @abstractmethod
    def rope_index(self, model: "PreTrainedModel") -> RopeIndex:
        """The rule of the model's positions."""

    @abstractmethod
    def decoder_positions(self, position_ids_ABT: Tensor) -> Tensor:
        """A batch's positions, of three axes or of four, as the decoder takes them."""

    @abstractmethod
    def encode(self, model: "PreTrainedModel", images: Sequence[Patches]) -> list[Tensor]:
        """Features [levels, image tokens, hidden size] of each of these images, of which there is at least one.

        Level 0 is what takes the image tokens' places; the others, which Qwen3-VL has, are added in deeper layers.
        """

    @abstractmethod
    def vision_output(self, features: Sequence[Tensor]) -> Any:
        """The same features, as the model's own `get_image_features` would have returned them."""
