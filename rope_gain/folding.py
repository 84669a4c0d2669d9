"""Folds gains into the weights before the rotation: the stock model that computes the same."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rope_gain.attachment import decoder_layers, detach, gain_modules
from rope_gain.families import find_family
from rope_gain.gain import RopeGain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_foldable(gains: Mapping[int, RopeGain], *, has_norm: bool, partial: bool = False) -> None:
    """Tells whether `fold` can take these gains, which may have been read without their model.

    Args:
        gains: by the number of their layer, as `gain_modules` returns them.
        has_norm: whether a norm sits between projection and rotation (q_norm and k_norm, in Qwen3's families).
        partial: as in `fold`.

    Raises:
        ValueError: there is a part that no weight can hold, or, with `partial`, nothing else; with the reason and
            what to train instead.
    """
    reasons = {number: reason for number, gain in gains.items() if (reason := _remainder(gain, has_norm))}
    if not reasons:
        return
    reason = next(iter(reasons.values()))
    if not partial:
        raise ValueError(reason)
    folding = (a_HP for gain in gains.values() for a_HP in _static_parts(gain).values() if _folds(a_HP, has_norm))
    if len(reasons) == len(gains) and not any(a_HP.any() for a_HP in folding):
        raise ValueError(f"no part of the gains folds; {reason}")


@torch.no_grad()
def fold(model: "PreTrainedModel", *, partial: bool = False) -> None:
    """Multiplies static gains into the weights that come before the rotation, and detaches them. In place.

    A static gain is the same on both members of a rotary pair (dimensions i and i+P), so it commutes with the
    rotation and can be applied before it: in the rows and biases of q_proj and k_proj, or, where q_norm and k_norm
    sit between them and the rotation, in those norms' weights. These are shared by the heads, and so must be the
    gain: what comes before a norm does not scale what comes after it. The stock model that is left has the same
    logits up to the rounding of its weights' dtype: the product is taken in float32 and cast once.

    Merge adapters first. An adapter for q_proj or k_proj that was trained with the gains attached must not be loaded
    on the folded model, unless the gain went into a norm: the rows of its lora_B would need the same factors.

    Args:
        model: a supported model with gains attached.
        partial: fold what folds and keep the rest attached, in place of refusing. Of position-dependent gains the
            factor exp(a) folds and b stays; layers whose gain is then 1 everywhere lose it, and if all do, the model
            is stock.

    Raises:
        ValueError: the model's class is not supported, it has no gains, they depend on the position or differ
            between heads that share a norm (with `partial`: no part of them folds), or a projection is not a plain
            `torch.nn.Linear`. The model is then as it was.
    """
    gains = gain_modules(model)
    if not gains:
        raise ValueError("model: it has no gains to fold")
    layers = decoder_layers(model, find_family(type(model).__name__))
    has_norm = hasattr(layers[0].self_attn, "q_norm")
    check_foldable(gains, has_norm=has_norm, partial=partial)
    steps = [
        _make_step(number, layers[number].self_attn, side, a_HP, has_norm)
        for number, gain in gains.items()
        for side, a_HP in _static_parts(gain).items()
        if _folds(a_HP, has_norm)
    ]
    for step in steps:
        _scale(step)
    kept = [number for number, gain in gains.items() if _remainder(gain, has_norm)]
    if kept:
        _keep(model, layers, kept)
    else:
        detach(model)


class _Step(NamedTuple):
    """One static gain and where it goes."""

    a_HP: Tensor
    module: Any
    """Has a weight [num_heads * 2P, C], or [2P] for all heads."""
    num_heads: int
    num_pairs: int


def _static_parts(gain: RopeGain) -> dict[str, Tensor]:
    """The log gains at position 0 by the first letter of query and key, [H or 1, P or 1]."""
    return {"q": gain.query_a} if gain.key_a is None else {"q": gain.query_a, "k": gain.key_a}


def _folds(a_HP: Tensor, has_norm: bool) -> bool:
    return not has_norm or a_HP.shape[0] == 1


def _remainder(gain: RopeGain, has_norm: bool) -> str | None:
    """Why not all of a layer's gain folds, with what to train instead; None if it does."""
    if any(not _folds(a_HP, has_norm) and a_HP.any() for a_HP in _static_parts(gain).values()):
        return (
            f"rope_gain.granularity: got {gain.config.granularity!r}, expected 'layer' or 'layer_frequency' to fold: "
            f"the model normalises query and key between projection and rotation, and all heads share that norm's "
            f"weight; train with 'granularity: layer_frequency' and 'position: static' instead"
        )
    if any(b_HP is not None and b_HP.any() for b_HP in (gain.query_b, gain.key_b)):
        return (
            f"rope_gain.position: got {gain.config.position!r}, expected 'static' to fold: b multiplies a function of "
            f"the position, which no weight can hold; train with 'position: static' instead"
        )
    return None


def _make_step(number: int, attention: Any, side: str, a_HP: Tensor, has_norm: bool) -> _Step:
    """ValueError if scaling the module's weight would not scale all that it computes."""
    name = f"{side}_norm" if has_norm else f"{side}_proj"
    module = getattr(attention, name)
    # An adapter's, a quantised or a reparametrised module's output has parts that scaling `weight` would miss.
    is_plain = [part for part, _ in module.named_parameters()] == ["weight"] if has_norm else type(module) is nn.Linear
    if not is_plain:
        expected = "a norm with a weight alone" if has_norm else "torch.nn.Linear"
        kind = type(module)
        raise ValueError(
            f"layers.{number}.self_attn.{name}: got {kind.__module__}.{kind.__qualname__}, expected {expected}; "
            f"merge adapters and undo quantisation before folding"
        )
    num_heads = 1 if has_norm else module.out_features // attention.head_dim
    return _Step(a_HP, module, num_heads, attention.head_dim // 2)


def _scale(step: _Step) -> None:
    """Takes exp(a[h, i]) from the gain into rows i and i+P of each head, which are rotary pair i."""
    gain_H1P = torch.exp(step.a_HP.float())[:, None, :]
    gain = gain_H1P.expand(step.num_heads, 2, step.num_pairs).flatten()
    # A weight of 16 bits times a float32 gain is float32; copy_ casts it back, once.
    for parameter in step.module.parameters():
        parameter.copy_(parameter * gain.view(-1, *(1,) * (parameter.ndim - 1)))
    step.a_HP.zero_()


def _keep(model: "PreTrainedModel", layers: Any, kept: list[int]) -> None:
    """Leaves gains in these layers alone."""
    for number, gain in gain_modules(model).items():
        gain.config = dataclasses.replace(gain.config, layers=None if len(kept) == len(layers) else tuple(kept))
        model.config.rope_gain = gain.config.to_dict()
        if number not in kept:
            layers[number].self_attn.rope_gain = None
