"""What is learned: the shape, the target and the position law of the response gain."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

Granularity = Literal["layer", "layer_frequency", "layer_head_frequency"]
Target = Literal["query", "query_key"]
PositionLaw = Literal["static", "log"]

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeGainConfig:
    """Learnable RoPE response gain g = exp(a + b·log1p(m/L0)), after LAid (arXiv 2512.21576), part 2.

    The paper leaves the parameters open; these fields are this project's definition of them. The same object
    is the `rope_gain` block of a checkpoint's config.json.
    """

    granularity: Granularity = "layer_frequency"
    """One gain per layer, per layer and rotary pair, or per layer, head and rotary pair."""

    target: Target = "query"
    """Which vectors are scaled. Static gains of query and key are only identified up to their product."""

    position: PositionLaw = "log"
    """`static` leaves b out; `log` learns the slope b over log1p(m/L0), m being the position."""

    reference_length: float = 256.0
    """L0, in rotary positions: well below it the gain is static, above it log-linear."""

    layers: tuple[int, ...] | None = None
    """The decoder layers that have a gain; None is all of them."""

    def __post_init__(self) -> None:
        _check_choice("granularity", self.granularity, get_args(Granularity))
        _check_choice("target", self.target, get_args(Target))
        _check_choice("position", self.position, get_args(PositionLaw))
        length = self.reference_length
        if not _is_number(length) or not math.isfinite(length) or length <= 0:
            raise ValueError(f"rope_gain.reference_length: got {length!r}, expected a number above 0")
        object.__setattr__(self, "reference_length", float(length))
        if self.layers is not None:
            object.__setattr__(self, "layers", _checked_layers(self.layers))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the `rope_gain` block of config.json.

        Raises:
            ValueError: a key is unknown (the nearest known one is named), a value is not as expected, or the
                block's format is not the one this version writes.
        """
        known = ["format", *(field.name for field in dataclasses.fields(cls))]
        for key in values:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise ValueError(f"rope_gain.{key}: unknown key, the nearest known one is {nearest!r}")
        if values.get("format", FORMAT) != FORMAT:
            raise ValueError(f"rope_gain.format: got {values['format']!r}, expected {FORMAT}")
        return cls(**{key: value for key, value in values.items() if key != "format"})

    def to_dict(self) -> dict[str, Any]:
        """The `rope_gain` block of config.json: plain JSON values, with the format's number."""
        layers = None if self.layers is None else list(self.layers)
        return {"format": FORMAT, **dataclasses.asdict(self), "layers": layers}

    def gain_shapes(self, *, num_heads: int, num_key_value_heads: int, head_dim: int) -> dict[str, tuple[int, int]]:
        """Shapes [heads or 1, rotary pairs or 1] of one layer's gain tensors, by name.

        `*_b` is left out of static gains and `key_*` where only the query is scaled.
        """
        pairs = 1 if self.granularity == "layer" else head_dim // 2
        per_head = self.granularity == "layer_head_frequency"
        shapes = {"query_a": (num_heads if per_head else 1, pairs)}
        if self.target == "query_key":
            shapes["key_a"] = (num_key_value_heads if per_head else 1, pairs)
        if self.position == "log":
            shapes |= {name.replace("_a", "_b"): shape for name, shape in shapes.items()}
        return shapes

    def gained_layers(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers with a gain in a model of `num_layers`; ValueError if one does not exist."""
        if self.layers is None:
            return tuple(range(num_layers))
        for layer in self.layers:
            if layer >= num_layers:
                raise ValueError(
                    f"rope_gain.layers: got layer {layer}, expected at most {num_layers - 1}: "
                    f"the model has {num_layers} decoder layers"
                )
        return self.layers


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"rope_gain.{key}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_layers(layers: object) -> tuple[int, ...]:
    """The layers, sorted; a JSON list becomes a tuple so that the configuration stays hashable."""
    if isinstance(layers, list | tuple) and layers and len(set(layers)) == len(layers):
        numbers = tuple(layer for layer in layers if type(layer) is int and layer >= 0)
        if len(numbers) == len(layers):
            return tuple(sorted(numbers))
    raise ValueError(f"rope_gain.layers: got {layers!r}, expected null or a list of different layer numbers, from 0 up")
