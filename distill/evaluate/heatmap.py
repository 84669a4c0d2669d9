"""Accuracy by number of images and by where among them the needle is, as a picture.

Dimension letters: S numbers of images, K bins of depth.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distill.evaluate.measure import Outcome

NUM_BINS = 10

_COLOURS = "viridis"
_LIGHT_FROM = 0.6
_EMPTY, _EMPTY_LINES, _EMPTY_HATCH = "#e4e4e4", "#9a9a9a", "///"


def count_by_depth(
    outcomes: Sequence[Outcome], num_bins: int = NUM_BINS
) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of images in growing order, and right answers and items in each bin, both [S, K].

    A number of images is the mean of a task's size, to the nearest, as in the curve. The depth of a needle is its index
    over that of the last image, unless its task says where it is: 0 is the first image, and 1 the last, which belongs
    to the last bin. The only image of a prompt is its first.
    """
    sizes = sorted({outcome.place[0] for outcome in outcomes})
    correct_SK = np.zeros((len(sizes), num_bins), dtype=np.int64)
    items_SK, images_S = np.zeros_like(correct_SK), np.zeros(len(sizes))
    for outcome in outcomes:
        row, bin_ = sizes.index(outcome.place[0]), _bin(outcome, num_bins)
        items_SK[row, bin_] += 1
        correct_SK[row, bin_] += outcome.correct
        images_S[row] += outcome.images
    return [round(mean) for mean in images_S / items_SK.sum(axis=1)], correct_SK, items_SK


def _bin(outcome: Outcome, num_bins: int) -> int:
    if outcome.depth is not None:
        return min(int(num_bins * outcome.depth), num_bins - 1)
    # In whole numbers: a depth on the edge of two bins is in the upper one.
    return min(num_bins * outcome.needle_index // max(outcome.images - 1, 1), num_bins - 1)


def draw_heatmap(path: Path, title: str, outcomes: Sequence[Outcome]) -> None:
    """Draws accuracy with the number of images to the right and the needle's depth down; hatched where none was asked.

    Args:
        path: the PNG file to write.
        title: such as the model's name and the task.
        outcomes: of one evaluation.
    """
    sizes, correct_SK, items_SK = count_by_depth(outcomes)
    nothing_SK = np.full(items_SK.shape, np.nan)
    accuracy_SK = np.divide(correct_SK, items_SK, out=nothing_SK, where=items_SK > 0)
    # A figure without pyplot: no display and no list of open figures.
    figure = Figure(figsize=(3.2 + 0.75 * len(sizes), 5), layout="constrained")
    axes = figure.subplots()
    # What is not a number is not drawn, so that the ground of the axes shows.
    axes.patch.set(facecolor=_EMPTY, edgecolor=_EMPTY_LINES, hatch=_EMPTY_HATCH, linewidth=0)
    mesh = axes.pcolormesh(accuracy_SK.T, cmap=_COLOURS, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for column, row in np.argwhere(items_SK > 0):
        accuracy = accuracy_SK[column, row]
        colour = "black" if accuracy > _LIGHT_FROM else "white"
        axes.text(column + 0.5, row + 0.5, f"{100 * accuracy:.0f}", ha="center", va="center", fontsize=8, color=colour)
    _label(axes, sizes, items_SK)
    axes.set_title(title, fontsize=10, loc="left")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, format=lambda share, _: f"{100 * share:.0f} %")
    bar.set_label("accuracy", fontsize=9)
    figure.savefig(path, dpi=150)


def _label(axes: Axes, sizes: Sequence[int], items_SK: NDArray[np.int64]) -> None:
    num_bins = items_SK.shape[1]
    axes.set_xticks(np.arange(len(sizes)) + 0.5, [str(size) for size in sizes])
    axes.set_yticks(np.arange(0, num_bins + 1), [f"{100 * edge / num_bins:.0f} %" for edge in range(num_bins + 1)])
    axes.invert_yaxis()
    axes.tick_params(length=2, labelsize=8)
    asked = items_SK[items_SK > 0]
    empty = "; hatched: none" if (items_SK == 0).any() else ""
    axes.set_xlabel(f"images in the prompt ({asked.min()} to {asked.max()} items a cell{empty})", fontsize=9)
    axes.set_ylabel("depth of the needle, from the first (0 %) to the last", fontsize=9)
