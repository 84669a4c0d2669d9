"""Qwen2.5-VL in Hugging Face transformers: where its attention layers take the gain."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLAttention,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLRotaryEmbedding,
    eager_attention_forward,
)

from rope_gain.gain import rotate, scale_rotation
from rope_gain.laid_model import LAidModel


class Rotation(NamedTuple):
    """What every decoder layer gets in place of stock's (cos, sin), before the cast to the layer's dtype."""

    cos: Tensor
    """float32 [B, T, D]"""
    sin: Tensor
    """float32 [B, T, D]"""
    positions: Tensor
    """float32 [B, T, P], the position on the M-RoPE axis that the pair belongs to"""


class GainedRotaryEmbedding(Qwen2_5_VLRotaryEmbedding):
    """Stock's rotary embedding, in float32 and with the positions it was made from."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Rotation:
        """The rotation at position_ids [3, B, T] (M-RoPE's time, height, width), on x's device."""
        cos_BTD, sin_BTD = super().forward(x.new_empty(0, dtype=torch.float32), position_ids)
        num_pairs = self.inv_freq.shape[0]
        positions = position_ids.float()[..., None].expand(3, -1, -1, num_pairs)
        # Stock's own choice of an axis for each pair, so the gain cannot disagree with the rotation.
        return Rotation(cos_BTD, sin_BTD, self.recomposition_frequencies(positions)[..., :num_pairs])


class GainedAttention(Qwen2_5_VLAttention):
    """Stock's attention with this layer's gain in the rotation: gained q and k are cached and attended.

    `rope_gain` is the layer's `RopeGain`, or None in a layer that the configuration leaves out.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        *,
        position_embeddings: Rotation,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `Qwen2_5_VLAttention.forward`, with `position_embeddings` from `GainedRotaryEmbedding`."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q_BHTD, k_BHTD, v_BHTD = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTD, k_BHTD = self._rotate(q_BHTD, k_BHTD, position_embeddings, hidden_states.dtype)
        if past_key_values is not None:
            k_BHTD, v_BHTD = past_key_values.update(k_BHTD, v_BHTD, self.layer_idx)

        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            q_BHTD,
            k_BHTD,
            v_BHTD,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            position_ids=position_ids,
            **kwargs,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    def _rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, rotation: Rotation, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos_BTD, sin_BTD, positions_BTP = rotation
        stock = (cos_BTD[:, None].to(dtype), sin_BTD[:, None].to(dtype))
        if self.rope_gain is None:
            return rotate(q_BHTD, *stock), rotate(k_BHTD, *stock)
        query_gain, key_gain = self.rope_gain(positions_BTP)
        gained_query = scale_rotation(query_gain, cos_BTD, sin_BTD, dtype)
        gained_key = stock if key_gain is None else scale_rotation(key_gain, cos_BTD, sin_BTD, dtype)
        return rotate(q_BHTD, *gained_query), rotate(k_BHTD, *gained_key)


class LAidQwen2_5_VLForConditionalGeneration(LAidModel, Qwen2_5_VLForConditionalGeneration):  # noqa: N801
    """Qwen2.5-VL with gains attached."""


# What attach puts in place of each stock class; detach goes the other way.
GAINED_CLASSES: MappingProxyType[type[nn.Module], type[nn.Module]] = MappingProxyType(
    {
        Qwen2_5_VLAttention: GainedAttention,
        Qwen2_5_VLRotaryEmbedding: GainedRotaryEmbedding,
        Qwen2_5_VLForConditionalGeneration: LAidQwen2_5_VLForConditionalGeneration,
    }
)
