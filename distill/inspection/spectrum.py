"""Gains as numbers: by layer, and by the wavelength and the axis of the rotary pair.

Dimension letters: M positions, L layers with a gain, H heads, P rotary pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.gains import CheckpointGains

_AXES = ("time", "height", "width")
_ONLY_AXIS = "position"


class Position(NamedTuple):
    """A rotary position at which gains are shown."""

    name: str
    value: float
    """m"""
    meaning: str


class RotaryPair(NamedTuple):
    """Dimensions i and i+P of a head, which are rotated together."""

    axis: str
    """Whose positions rotate it: time, height or width; "position" in a model with one axis."""
    wavelength: float
    """2π/θ_i: the number of positions of a whole turn, which is tokens in text."""


class Band(NamedTuple):
    """The pairs of one axis within a decade of wavelengths."""

    axis: str
    least: int
    """The wavelength from which the band goes up to ten times as much, which is outside."""
    pairs: tuple[int, ...]


class Summary(NamedTuple):
    """Of any number of gains."""

    mean: float
    """Geometric, which halving and doubling leave at 1."""
    least: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The gains of a checkpoint's every layer, head and rotary pair, at some positions."""

    positions: tuple[Position, ...]
    pairs: tuple[RotaryPair, ...]
    layers: tuple[int, ...]
    """Numbers of the layers that have a gain."""
    log_gains: dict[str, Tensor]
    """ln g by side, [M, L, H or 1, P]: "query" and, where keys have gains, "key" and "query·key"."""


def make_spectrum(gains: CheckpointGains, positions: Sequence[Position]) -> Spectrum:
    """Evaluates the gains; "query·key" is what the attention logits of two tokens at the same position get."""
    pairs = rotary_pairs(gains)
    at_MP = torch.tensor([position.value for position in positions])[:, None].expand(-1, len(pairs))
    sides: dict[str, list[Tensor]] = {"query": [], "key": []}
    with torch.no_grad():
        for gain in gains.layers.values():
            for side, gain_HMP in zip(sides, gain(at_MP), strict=True):
                if gain_HMP is not None:
                    log_gain = gain_HMP.log().expand(-1, *at_MP.shape)
                    sides[side].append(log_gain.transpose(0, 1))
    log_gains = {side: torch.stack(layers, dim=1) for side, layers in sides.items() if layers}
    if "key" in log_gains:
        query, key = log_gains["query"], log_gains["key"]
        log_gains["query·key"] = query + key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    return Spectrum(positions=tuple(positions), pairs=pairs, layers=tuple(gains.layers), log_gains=log_gains)


def rotary_pairs(gains: CheckpointGains) -> tuple[RotaryPair, ...]:
    """The decoder's pairs, in their order in a head."""
    from rope_gain.hugging_face import load_class

    # Stock's own module, which has no weights, knows every rope type and both layouts of M-RoPE's sections.
    rotary: Any = load_class(gains.family.rotary_embedding)(gains.text_config)
    wavelengths = (2 * math.pi / rotary.inv_freq.double()).tolist()
    if not hasattr(rotary, "recomposition_frequencies"):
        return tuple(RotaryPair(_ONLY_AXIS, wavelength) for wavelength in wavelengths)
    num_pairs = len(wavelengths)
    axis_311P = torch.arange(3)[:, None, None, None].expand(-1, 1, 1, num_pairs).clone()
    axis_P = rotary.recomposition_frequencies(axis_311P)[0, 0, :num_pairs].tolist()
    return tuple(RotaryPair(_AXES[axis], wavelength) for axis, wavelength in zip(axis_P, wavelengths, strict=True))


def make_bands(pairs: Sequence[RotaryPair]) -> list[Band]:
    """The pairs by axis and decade of wavelength, short ones first."""
    bands: dict[tuple[str, int], list[int]] = {}
    for axis in dict.fromkeys(pair.axis for pair in pairs):
        for number, pair in enumerate(pairs):
            if pair.axis == axis:
                bands.setdefault((axis, 10 ** math.floor(math.log10(pair.wavelength))), []).append(number)
    return [Band(axis, least, tuple(numbers)) for (axis, least), numbers in bands.items()]


def summarise(log_gain: Tensor) -> Summary:
    """Of all the gains in a tensor of any shape."""
    return Summary(*(float(value.exp()) for value in (log_gain.mean(), log_gain.min(), log_gain.max())))


def heads_apart(log_gain_HP: Tensor) -> Tensor:
    """The factor of one standard deviation between the heads, [P]: 1 where all have the same gain."""
    return log_gain_HP.std(dim=-2, correction=0).exp()
