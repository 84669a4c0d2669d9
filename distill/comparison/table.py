"""The comparison as tables of text: for Markdown and for the page."""

from dataclasses import asdict, dataclass
from typing import Any

from distill.comparison.compare import Comparison, Estimate, Row
from distill.evaluate.curve import CONFIDENCE
from distill.evaluate.table import threshold_label

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """A caption, a header, and rows that begin with a model's name."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_tables(comparison: Comparison) -> list[Table]:
    """The paper's table, the windows, and, where there is more than the base, what is gained on it."""
    tables = [_accuracies(comparison), _windows(comparison)]
    return tables if len(comparison.rows) == 1 else [*tables, _against_base(comparison)]


def make_notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the tables."""
    notes = [
        "An effective window is the largest number of images up to which accuracy stays at or above the threshold, "
        "linear between the measured sizes; ≥ marks one that had no end there, a lower bound.",
    ]
    if len(comparison.rows) > 1:
        notes.append(
            f"A window factor is the ratio of a window to that of {comparison.base}. A gain is the mean, over the "
            f"sizes named, of the ratios of the accuracy to that of {comparison.base}, less 1."
        )
        notes.append(
            "Ratios are of models that answered the same items, which the bootstrap draws together."
            if comparison.is_paired
            else "Each item's answer is not known for all models, or the items differ: the bootstrap draws each "
            "model's items on their own, and intervals of ratios are wider for it."
        )
    if any(len(row.sources) > 1 for row in comparison.rows):
        notes.append(
            "Rows of several seeds show their mean, with an interval over seeds and items (hierarchical bootstrap)."
        )
    return notes


def to_markdown(comparison: Comparison) -> str:
    """The tables, aligned so that they are readable as they are, and the notes."""
    parts = [f"**{table.caption}**\n\n{_markdown_table(table)}" for table in make_tables(comparison)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in make_notes(comparison))]) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Every number of the tables, ready for JSON."""
    return {
        "format": FORMAT,
        "task": comparison.task,
        "confidence": CONFIDENCE,
        "base": comparison.base,
        "paired": comparison.is_paired,
        "gain_sizes": {gain: comparison.gain_sizes(gain) for gain in ("short", "long")},
        "rows": [_row_to_json(comparison, row) for row in comparison.rows],
    }


def row_label(row: Row) -> str:
    """The name, with the number of seeds where there are several."""
    return row.name if len(row.sources) == 1 else f"{row.name} ({len(row.sources)} seeds)"


def _accuracies(comparison: Comparison) -> Table:
    rows = [
        (row_label(row), *(_cell(each, 100) for each in row.accuracies), f"{100 * min(row.compliances):.1f}")
        for row in comparison.rows
    ]
    return Table(
        caption=f"Accuracy in % by number of images, {comparison.task} (95 % interval)",
        header=("model", *map(str, comparison.sizes), "least compliance"),
        rows=tuple(rows),
    )


def _windows(comparison: Comparison) -> Table:
    labels = [threshold_label(each.value, each.kind) for each in comparison.thresholds]
    return Table(
        caption="Effective window in images, by threshold (95 % interval)",
        header=("model", *labels),
        rows=tuple((row_label(row), *(_cell(each, digits=0) for each in row.windows)) for row in comparison.rows),
    )


def _against_base(comparison: Comparison) -> Table:
    labels = [f"factor at {threshold_label(each.value, each.kind)}" for each in comparison.thresholds]
    gains = [gain for gain in ("short", "long") if comparison.gain_sizes(gain)]
    rows = []
    for row in comparison.rows:
        if row.factors is None:
            continue
        estimates = {"short": row.short_gain, "long": row.long_gain}
        cells = [_cell(each, digits=2) for each in row.factors]
        rows.append((row_label(row), *cells, *(_cell(estimates[gain], 100, sign=True) for gain in gains)))
    sizes = {gain: ", ".join(map(str, comparison.gain_sizes(gain))) for gain in gains}
    return Table(
        caption=f"Against {comparison.base}: window factors, and gains in % (95 % interval)",
        header=("model", *labels, *(f"{gain}-context gain ({sizes[gain]})" for gain in gains)),
        rows=tuple(rows),
    )


def _cell(estimate: Estimate | None, scale: float = 1, *, digits: int = 1, sign: bool = False) -> str:
    """Such as "97.5 (94.3 to 98.9)" or "≥ 4.29 (3.91 to 4.80)"."""
    if estimate is None:
        return "none"
    style = f"{'+' if sign else ''}.{digits}f"
    high = "no bound" if estimate.high is None else format(scale * estimate.high, style)
    value, low = format(scale * estimate.value, style), format(scale * estimate.low, style)
    return f"{'≥ ' if estimate.at_least else ''}{value} ({low} to {high})"


def _markdown_table(table: Table) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def _row_to_json(comparison: Comparison, row: Row) -> dict[str, Any]:
    thresholds = [{"threshold": each.value, "kind": each.kind} for each in comparison.thresholds]
    by_threshold: dict[str, Any] = {
        "windows": [level | asdict(window) for level, window in zip(thresholds, row.windows, strict=True)]
    }
    if row.factors is not None:
        by_threshold["factors"] = [
            level | {"factor": factor and asdict(factor)} for level, factor in zip(thresholds, row.factors, strict=True)
        ]
        by_threshold["gains"] = {
            name: gain and asdict(gain) for name, gain in (("short", row.short_gain), ("long", row.long_gain))
        }
    curve = [
        {"images": size, "accuracy": asdict(accuracy), "compliance": compliance}
        for size, accuracy, compliance in zip(comparison.sizes, row.accuracies, row.compliances, strict=True)
    ]
    return {"name": row.name, "sources": list(row.sources), "curve": curve} | by_threshold
