"""A step's samples as tensors."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.data.patches import Patches
from distill.losses.kinds import RowKind
from distill.losses.rows import Places, Rows, drawn_from, rows_where


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What a model runs on: samples padded on the right, or packed into one row, [1, sum of the lengths]."""

    input_ids_BT: Tensor
    position_ids_ABT: Tensor
    """M-RoPE's three axes; of a packed row, before them, each token's index in its own sample: transformers takes it
    out of four axes and tells by it where a sample begins."""
    answer_BT: Tensor
    """Picks the rows that predict an answer token, sample by sample, in either form."""
    segment_lengths: list[int] | None
    """Tokens of each sample of a packed row; None of padded ones."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences padded on the right, so that causal attention needs no mask to keep padding out of real rows.

    Names, rows and answers are by sample in any case. A packed batch differs in what models run on, which has no
    padding, and so in the shape of their queries and keys: [1, heads, sum of the lengths, head size].
    """

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
    is_packed: bool = False
    """Whether models run the samples in one row, one after the other, each attending only to itself."""

    @property
    def answer_ids(self) -> Tensor:
        """The tokens that the answer rows should predict, [N]."""
        return self.input_ids_BT.roll(-1, dims=1)[self.answer_BT]

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding left out."""
        return sum(self.lengths)

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each sample."""
        lengths: list[int] = self.is_token_BT.sum(dim=1).tolist()
        return lengths

    @cached_property
    def model_inputs(self) -> ModelInputs:
        """What models run on."""
        if not self.is_packed:
            return ModelInputs(
                input_ids_BT=self.input_ids_BT,
                position_ids_ABT=self.position_ids_3BT,
                answer_BT=self.answer_BT,
                segment_lengths=None,
            )
        is_token_BT = self.is_token_BT
        index_T = torch.arange(is_token_BT.shape[1], device=is_token_BT.device)
        position_ids_4BT = torch.cat([index_T.expand_as(is_token_BT)[None], self.position_ids_3BT])
        return ModelInputs(
            input_ids_BT=self.input_ids_BT[is_token_BT][None],
            position_ids_ABT=position_ids_4BT[:, is_token_BT][:, None],
            answer_BT=self.answer_BT[is_token_BT][None],
            segment_lengths=self.lengths,
        )

    def by_sample(self, x_BHTD: Tensor) -> tuple[Tensor, ...]:
        """Views of each sample's queries or keys, [H, T, D], in a model's output for this batch."""
        if not self.is_packed:
            return x_BHTD.unbind()
        return tuple(x_1HTD[0] for x_1HTD in torch.split(x_BHTD, self.lengths, dim=2))

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
