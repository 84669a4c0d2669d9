"""All models' curves in one picture."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.comparison.compare import Comparison, Row
from distill.comparison.table import row_label

_NUM_DRAWN = 400
_MARKERS = "osD^vP*X"


def write_figure(path: Path, comparison: Comparison) -> None:
    """Writes the figure as PNG, on white."""
    path.write_bytes(draw_comparison(comparison))


def draw_comparison(comparison: Comparison, *, is_dark: bool = False) -> bytes:
    """A PNG of accuracy against images, every row with its intervals, for a light or a dark page."""
    with style.context("dark_background" if is_dark else "default"):
        # A figure without pyplot: no display and no list of open figures.
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        for window in comparison.thresholds:
            if window.kind == "absolute":
                axes.axhline(window.value, color="grey", linewidth=0.8, linestyle="--", zorder=1)
        colours = matplotlib.colormaps["tab10" if len(comparison.rows) <= 10 else "tab20"]
        for number, row in enumerate(comparison.rows):
            marker = _MARKERS[number % len(_MARKERS)]
            _draw_row(axes, comparison, row, color=colours(number % colours.N), marker=marker)
        _label(figure, axes, comparison)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def _draw_row(axes: Axes, comparison: Comparison, row: Row, *, color: Any, marker: str) -> None:
    sizes = np.array(comparison.sizes)
    accuracy = np.array([each.value for each in row.accuracies])
    spread = np.array([(each.value - each.low, (each.high or 0) - each.value) for each in row.accuracies])
    # Windows are defined by straight lines over images, which a logarithmic axis bends.
    drawn = np.geomspace(sizes[0], sizes[-1], _NUM_DRAWN)
    axes.plot(drawn, np.interp(drawn, sizes, accuracy), color=color, linewidth=1.5, zorder=3)
    axes.errorbar(
        sizes,
        accuracy,
        # A mean may lie outside a bootstrap's interval by less than a rounding error.
        yerr=np.maximum(spread, 0).T,
        fmt=marker,
        color=color,
        markersize=5,
        capsize=3,
        linewidth=1.1,
        label=row_label(row),
        zorder=4,
    )


def _label(figure: Figure, axes: Axes, comparison: Comparison) -> None:
    axes.set_xscale("log")
    axes.set_xticks(comparison.sizes, [str(size) for size in comparison.sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_xlabel("images in the prompt")
    axes.set_ylabel("accuracy")
    axes.set_title(f"{comparison.task}, 95 % intervals", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
