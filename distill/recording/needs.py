"""Which of a teacher's signals a recipe's losses look at: what is recorded, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

from distill.losses.kinds import RowKind
from distill.recipe import LossConfig

# Each kind's rows are among those of the next one.
_ROW_KINDS: tuple[RowKind, ...] = ("answer", "question", "all")


@dataclass(frozen=True, kw_only=True)
class LayerNeed:
    """Rows of one layer's rotated queries and keys."""

    query_rows: RowKind
    key_rows: RowKind

    def covers(self, other: "LayerNeed") -> bool:
        """Whether a layer with these rows serves a loss that needs the other's."""
        return _widest(self.query_rows, other.query_rows) == self.query_rows and (
            _widest(self.key_rows, other.key_rows) == self.key_rows
        )


def needed_layers(loss: LossConfig, num_layers: int) -> Mapping[int, LayerNeed]:
    """The teacher's layers that the losses look at, in order, counted from 0.

    Raises:
        ValueError: the teacher has no such layer.
    """
    needs: dict[int, LayerNeed] = {}
    for name, config, weight in (
        ("alignment", loss.alignment, loss.alignment_weight),
        ("matching", loss.matching, loss.matching_weight),
    ):
        for index, pair in enumerate(config.layers if weight > 0 else ()):
            if not -num_layers <= pair.teacher < num_layers:
                key = f"loss.{name}.layers[{index}].teacher"
                raise ValueError(f"{key}: {pair.teacher}, expected {-num_layers} to {num_layers - 1}")
            layer = pair.teacher % num_layers
            # Every row of the matching sees all keys before it; the alignment looks at its rows alone.
            need = LayerNeed(query_rows=config.rows, key_rows="all" if name == "matching" else config.rows)
            old = needs.get(layer, need)
            needs[layer] = LayerNeed(
                query_rows=_widest(old.query_rows, need.query_rows), key_rows=_widest(old.key_rows, need.key_rows)
            )
    return dict(sorted(needs.items()))


def _widest(a: RowKind, b: RowKind) -> RowKind:
    return max(a, b, key=_ROW_KINDS.index)
