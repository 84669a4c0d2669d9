"""Stock transformers classes with the gain mixed in. Imported only when a model is at hand."""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rope_gain.families import FAMILIES, Family
from rope_gain.gain import RopeGain, rotate
from rope_gain.laid_model import LAidModel

_Base: Any = nn.Module if TYPE_CHECKING else object


class Rotation(NamedTuple):
    """What every decoder layer gets in place of stock's (cos, sin)."""

    cos: Tensor
    """[B, T, D], in the model's dtype"""
    sin: Tensor
    """[B, T, D], in the model's dtype"""
    positions: Tensor
    """float32 [B, T, P], the position on the M-RoPE axis that the pair belongs to; [B, T, 1] where there is one axis"""


class GainedRotaryEmbedding(_Base):
    """Mixed in before a decoder's rotary embedding class: it also tells the positions that it rotates by."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Rotation:
        """The rotation at `position_ids`, [B, T], or [3, B, T] for M-RoPE's time, height and width."""
        cos_BTD, sin_BTD = super().forward(x, position_ids)
        positions = position_ids.float()[..., None]
        if hasattr(self, "recomposition_frequencies"):
            num_pairs = self.inv_freq.shape[0]
            # Stock's own choice of an axis for each pair, so the gain cannot disagree with the rotation. It may write
            # into what it is given, hence the copy.
            axes_3BTP = positions.expand(3, -1, -1, num_pairs).clone()
            positions = self.recomposition_frequencies(axes_3BTP)[..., :num_pairs]
        return Rotation(cos_BTD, sin_BTD, positions)


class GainedAttention(_Base):
    """Mixed in before a decoder's attention class: gained q and k are cached and attended.

    `rope_gain` is the layer's `RopeGain`, or None in a layer that the configuration leaves out. The one forward
    serves all families, whose own differ only in what follows: norms on query and key, or none.
    """

    rope_gain: RopeGain | None

    eager_attention: Callable[..., tuple[Tensor, Tensor | None]]
    """What the stock class falls back on: a function of its module."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotation,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock class, with `position_embeddings` from `GainedRotaryEmbedding`."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q_BTHD, k_BTHD, v_BTHD = (
            project(hidden_states).view(shape) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            q_BTHD, k_BTHD = self.q_norm(q_BTHD), self.k_norm(k_BTHD)
        q_BHTD, k_BHTD, v_BHTD = (x_BTHD.transpose(1, 2) for x_BTHD in (q_BTHD, k_BTHD, v_BTHD))
        q_BHTD, k_BHTD = self._rotate(q_BHTD, k_BHTD, position_embeddings)
        if past_key_values is not None:
            k_BHTD, v_BHTD = past_key_values.update(k_BHTD, v_BHTD, self.layer_idx)

        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, self.eager_attention
        )
        output, weights = attend(
            self,
            q_BHTD,
            k_BHTD,
            v_BHTD,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", None),
            **kwargs,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    def _rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        cos_B1TD, sin_B1TD = rotation.cos[:, None], rotation.sin[:, None]
        query_gain, key_gain = (None, None) if self.rope_gain is None else self.rope_gain(rotation.positions)
        return rotate(q_BHTD, cos_B1TD, sin_B1TD, query_gain), rotate(k_BHTD, cos_B1TD, sin_B1TD, key_gain)


@functools.cache
def gained_classes(family: Family) -> dict[type[nn.Module], type[nn.Module]]:
    """The family's subclasses with gains, by the stock class they stand in for."""
    attention, rotary_embedding = load_class(family.attention), load_class(family.rotary_embedding)
    model = load_class(f"transformers:{family.architecture}")
    # Each module of transformers has a copy of its own.
    eager_attention = importlib.import_module(attention.__module__).eager_attention_forward
    name = family.laid_architecture
    return {
        attention: _mix(GainedAttention, attention, f"{name}Attention", eager_attention=staticmethod(eager_attention)),
        rotary_embedding: _mix(GainedRotaryEmbedding, rotary_embedding, f"{name}RotaryEmbedding"),
        model: _mix(LAidModel, model, name),
    }


def laid_class(family: Family) -> Any:
    """The family's `PreTrainedModel` class with gains."""
    return gained_classes(family)[load_class(f"transformers:{family.architecture}")]


def load_class(path: str) -> Any:
    """The class that "module:Class" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> Any:
    """`LAid…` classes are made when they are asked for; pickles and copies find them here by their names."""
    for family in FAMILIES:
        if name.startswith(family.laid_architecture):
            for gained in gained_classes(family).values():
                if gained.__name__ == name:
                    return gained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _mix(mixin: type, stock: type, name: str, **members: Any) -> Any:
    return type(name, (mixin, stock), {"__module__": __name__, "__doc__": f"`{stock.__name__}` with gains.", **members})
