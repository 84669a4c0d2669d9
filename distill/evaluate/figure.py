"""The curve as a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from distill.evaluate.report import DEFAULT_THRESHOLD, Evaluation
from distill.evaluate.table import threshold_label, window_label

_COLOURS = ("#1f5fa8", "#8a8a8a")
_GUIDE = "#b0b0b0"
_NUM_DRAWN = 400


def draw_curves(path: Path, curves: Sequence[tuple[str, Evaluation]]) -> None:
    """Draws accuracy against images, with intervals, thresholds and the windows at the default threshold.

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
    _label(axes, evaluation)
    figure.savefig(path, dpi=150)


def _draw_curve(axes: "matplotlib.axes.Axes", name: str, evaluation: Evaluation, colour: str) -> None:
    images = np.array([point.images for point in evaluation.points])
    accuracy = np.array([point.accuracy for point in evaluation.points])
    intervals = np.array([point.interval for point in evaluation.points])
    # The window is defined by straight lines over images, which a logarithmic axis bends.
    drawn = np.geomspace(images[0], images[-1], _NUM_DRAWN)
    axes.plot(drawn, np.interp(drawn, images, accuracy), color=colour, linewidth=1.8, zorder=3)
    axes.errorbar(
        images,
        accuracy,
        yerr=np.abs(intervals.T - accuracy),
        fmt="o",
        color=colour,
        markersize=5,
        capsize=3,
        linewidth=1.2,
        label=name,
        zorder=4,
    )
    for window in evaluation.windows:
        if window.kind == "absolute" and window.threshold == DEFAULT_THRESHOLD and window.images >= images[0]:
            axes.vlines(window.images, 0, window.threshold, color=colour, linestyle=":", zorder=2)
            axes.annotate(
                f"window at {threshold_label(window.threshold, window.kind)}: {window_label(window)} images\n"
                f"{window.images_low:.0f} - {window.images_high:.0f}",
                (window.images, 0.03),
                xytext=(-5, 0),
                textcoords="offset points",
                ha="right",
                color=colour,
                fontsize=9,
            )


def _label(axes: "matplotlib.axes.Axes", evaluation: Evaluation) -> None:
    sizes = [point.images for point in evaluation.points]
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_xlabel("images in the prompt")
    axes.set_ylabel("accuracy")
    axes.set_title(
        f"{evaluation.task}, {evaluation.items_per_size} items a size, 95 % intervals",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
