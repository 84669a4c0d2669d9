"""What the losses see of a model: logits on the answer, rotated queries and keys of some layers.

Letters: B batch, H query heads, K key-value heads, T tokens, R query rows, D head size, N answer rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.losses.top_logits import TopLogits


@dataclass(frozen=True, kw_only=True)
class QueryKey:
    """One layer's attention inputs after the rotary embedding and after the gain.

    Samples are padded to T tokens, or packed: B is 1 and T the sum of their lengths (see `Batch.is_packed`).
    """

    q_BHTD: Tensor
    k_BKTD: Tensor
    scale: float
    """Factor on the dot products, 1/sqrt(head size) in most models."""

    def at_temperature(self, temperature: float) -> "QueryKey":
        """The same with all its attention logits divided by the temperature."""
        return replace(self, scale=self.scale / temperature)

    def only(self, heads: Sequence[int]) -> "QueryKey":
        """Some query heads, in this order, each with a copy of its key head."""
        group = self.q_BHTD.shape[1] // self.k_BKTD.shape[1]
        keys = [head // group for head in heads]
        return replace(self, q_BHTD=self.q_BHTD[:, list(heads)], k_BKTD=self.k_BKTD[:, keys])

    def split(self, lengths: list[int]) -> list["QueryKey"]:
        """Each sample's own, [1, heads, its length, D], of samples packed one after the other.

        The gradients of all parts come together in one concatenation.
        """
        parts = zip(torch.split(self.q_BHTD, lengths, dim=2), torch.split(self.k_BKTD, lengths, dim=2), strict=True)
        return [QueryKey(q_BHTD=q_BHTD, k_BKTD=k_BKTD, scale=self.scale) for q_BHTD, k_BKTD in parts]


@dataclass(frozen=True, kw_only=True)
class Signals:
    """One forward pass's signals, live or read back from a recording."""

    logits_NV: Tensor
    """At the rows that predict an answer token, in the order of `Batch.answer_BT`."""
    layers: dict[int, QueryKey]
    top_logits: TopLogits | None = None
    """In place of `logits_NV`, which is then empty: a recording that keeps the likeliest tokens only."""


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The sizes of a model's attention that the losses depend on."""

    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
