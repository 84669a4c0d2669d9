"""The curve as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.evaluate.report import Evaluation
from distill.evaluate.table import threshold_label, window_label

_COLOURS = ("#1f5fa8", "#8a8a8a")
_GUIDE = "#b0b0b0"
_NUM_DRAWN = 400


def draw_curves(path: Path, curves: Sequence[tuple[str, Evaluation]]) -> None:
    """Draws accuracy against images, with intervals, the thresholds, and the windows at the default threshold.

    Args:
        path: the PNG file to write.
        curves: the model's name and evaluation, and then, if there is one, the base's.
    """
    # A figure without pyplot: no display and no list of open figures.
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    evaluation = curves[0][1]
    for window in evaluation.windows:
        if window.kind == "absolute":
            axes.axhline(window.threshold, color=_GUIDE, linewidth=0.8, linestyle="--", zorder=1)
    for colour, (name, curve) in zip(_COLOURS, curves, strict=False):
        _draw_curve(axes, name, curve, colour)
        _draw_window(axes, curve, colour)
    _label(axes, evaluation)
    figure.savefig(path, dpi=150)


def _draw_curve(axes: Axes, name: str, evaluation: Evaluation, colour: str) -> None:
    images = np.array([point.images for point in evaluation.points])
    accuracy = np.array([point.accuracy for point in evaluation.points])
    intervals = np.array([point.interval for point in evaluation.points])
    # The window is defined by straight lines over images, which a logarithmic axis bends.
    drawn = np.geomspace(images[0], images[-1], _NUM_DRAWN)
    axes.plot(drawn, np.interp(drawn, images, accuracy), color=colour, linewidth=1.8, zorder=3)
    window = evaluation.default_window
    axes.errorbar(
        images,
        accuracy,
        yerr=np.abs(intervals.T - accuracy),
        fmt="o",
        color=colour,
        markersize=5,
        capsize=3,
        linewidth=1.2,
        label=f"{name}, window at {threshold_label(window.threshold, window.kind)}: {window_label(window)} images"
        f" ({window.images_low:.0f} - {window.images_high:.0f})",
        zorder=4,
    )


def _draw_window(axes: Axes, evaluation: Evaluation, colour: str) -> None:
    """A line down from where the curve leaves the default threshold, and the window's interval as a bar."""
    window = evaluation.default_window
    if window.images == 0:
        return
    axes.vlines(window.images, 0, window.threshold, color=colour, linestyle=":", zorder=2)
    low = max(window.images_low, evaluation.points[0].images)
    axes.hlines(window.threshold, low, window.images_high, color=colour, linewidth=6, alpha=0.35, zorder=2)


def _label(axes: Axes, evaluation: Evaluation) -> None:
    sizes = [point.images for point in evaluation.points]
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_xlabel("images in the prompt")
    axes.set_ylabel("accuracy")
    title = f"{evaluation.task}, {evaluation.items_per_size} items a size, 95 % intervals"
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
