"""What the losses see of a model: logits on the answer, rotated queries and keys of some layers.

Letters: B batch, H query heads, K key-value heads, T tokens, R query rows, D head size, N answer rows, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from distill.losses.top_logits import TopLogits


@dataclass(frozen=True, kw_only=True)
class QueryKey:
    """One layer's attention inputs after the rotary embedding and after the gain."""

    q_BHTD: Tensor
    k_BKTD: Tensor
    scale: float
    """Factor on the dot products, 1/sqrt(head size) in most models."""


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
