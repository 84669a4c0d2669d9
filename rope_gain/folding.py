"""Folds static gains into the projections: the stock model that computes the same."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rope_gain.attachment import decoder_layers, detach, gain_modules
from rope_gain.config import RopeGainConfig
from rope_gain.families import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_foldable(config: RopeGainConfig) -> None:
    """ValueError, with the reason and what to train instead, if no projection can hold gains of this kind."""
    if config.position != "static":
        raise ValueError(
            f"rope_gain.position: got {config.position!r}, expected 'static' to fold: b multiplies a function of the "
            f"position, which no projection's weights can hold; train with 'position: static' instead"
        )


@torch.no_grad()
def fold(model: "PreTrainedModel") -> None:
    """Multiplies static gains into the rows and biases of q_proj and k_proj, and detaches them. In place.

    A static gain is the same on both members of a rotary pair, so it commutes with the rotation and can be applied
    before it. The stock model that is left has the same logits up to the rounding of its weights' dtype: the
    product is taken in float32 and cast once. Merge adapters first.

    Args:
        model: a supported model with gains attached.

    Raises:
        ValueError: the model's class is not supported, it has no gains, they depend on the position, or a
            projection is not a plain `torch.nn.Linear`. The model is then as it was.
    """
    gains = gain_modules(model)
    if not gains:
        raise ValueError("model: it has no gains to fold")
    layers = decoder_layers(model, find_family(type(model).__name__))
    for number, gain in gains.items():
        check_foldable(gain.config)
        _check_projections(layers[number].self_attn, number)
    for number, gain in gains.items():
        attention = layers[number].self_attn
        _scale_rows(attention.q_proj, gain.query_a, attention.head_dim)
        if gain.key_a is not None:
            _scale_rows(attention.k_proj, gain.key_a, attention.head_dim)
    detach(model)


def _check_projections(attention: Any, number: int) -> None:
    for name in ("q_proj", "k_proj"):
        kind = type(getattr(attention, name))
        if kind is not nn.Linear:
            # An adapter's or a quantised layer's output has parts that scaling `weight` would miss.
            raise ValueError(
                f"layers.{number}.self_attn.{name}: got {kind.__module__}.{kind.__qualname__}, expected "
                f"torch.nn.Linear; merge adapters and undo quantisation before folding"
            )


def _scale_rows(projection: nn.Linear, a_HP: Tensor, head_dim: int) -> None:
    """Rows i and i+P of each head, which are rotary pair i, times exp(a[h, i]); `a_HP` is [H or 1, P or 1]."""
    gain_H1P = torch.exp(a_HP.float())[:, None, :]
    num_heads, num_pairs = projection.out_features // head_dim, head_dim // 2
    gain = gain_H1P.expand(num_heads, 2, num_pairs).flatten()
    # A weight of 16 bits times a float32 gain is float32; copy_ casts it back, once.
    projection.weight.copy_(projection.weight * gain[:, None])
    if projection.bias is not None:
        projection.bias.copy_(projection.bias * gain)
