"""A step's samples as tensors."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.data.patches import Patches
from distill.losses.kinds import RowKind
from distill.losses.rows import Places, Rows, drawn_from, rows_where


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences padded on the right, so that causal attention needs no mask to keep padding out of real rows."""

    names: tuple[str, ...]
    """Where each sample came from, for messages."""
    input_ids_BT: Tensor
    is_token_BT: Tensor
    """False on padding."""
    position_ids_3BT: Tensor
    """M-RoPE positions, from the model's own `get_rope_index`."""
    images_before_BT: Tensor
    """Number of images that began at or before the token."""
    question_BT: Tensor
    """Every real token after the last image."""
    answer_BT: Tensor
    """The rows that predict an answer token or the end of the turn."""
    image_token_id: int
    images: tuple[Patches, ...]
    """In the order of their placeholders, sample by sample."""

    @property
    def answer_ids(self) -> Tensor:
        """The tokens that the answer rows should predict, [N]."""
        return self.input_ids_BT.roll(-1, dims=1)[self.answer_BT]

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding left out."""
        return int(self.is_token_BT.sum())

    @property
    def places(self) -> Places:
        """Where the tokens lie, for distances."""
        return Places(position_ids_3BT=self.position_ids_3BT, images_before_BT=self.images_before_BT)

    def rows(self, kind: RowKind, *, at_most: int | None = None, draw: str = "") -> Rows:
        """The query rows of this kind.

        Args:
            at_most: so many of each sample's, if it has more.
            draw: which of them, together with the sample's name; it does not matter what else is in the batch.
        """
        masks = {"all": self.is_token_BT, "question": self.question_BT, "answer": self.answer_BT}
        mask_BT = masks[kind]
        if at_most is not None:
            mask_BT = drawn_from(mask_BT, at_most, [f"{name}/{draw}" for name in self.names])
        return rows_where(mask_BT)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on this device; images stay where they are until a tower needs them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved)
