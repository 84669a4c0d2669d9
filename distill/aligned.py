"""Tables on the terminal."""

from collections.abc import Sequence


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Right-aligned columns, two spaces apart, with a rule under the first row."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])
