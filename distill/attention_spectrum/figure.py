"""The profiles, the low band by layer and head, and the checkpoints side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distill.attention_spectrum.report import Measured, summarise

_PROFILE_COLOURS, _PROFILE_LIMIT = "RdBu_r", 4.0
_SHARE_COLOURS = "viridis"
_UNKNOWN = {"facecolor": "#e4e4e4", "edgecolor": "#9a9a9a", "hatch": "///", "linewidth": 0}
_MOST_TICKS, _MOST_LINES = 14, 60


def draw_profiles(path: Path, found: Sequence[Measured]) -> None:
    """Attention against distance, a line of the panel for each head: by factor above or below the head's mean."""
    most_heads = max(measured.profile_LHN[..., 0].size for measured in found)
    figure, grid = _make_grid(found, panel_height=1.2 + 0.12 * min(most_heads, _MOST_LINES))
    for measured, (axes,) in grid:
        num_layers, num_heads, num_images = measured.profile_LHN.shape
        lines = measured.profile_LHN.reshape(-1, num_images)
        norm = LogNorm(1 / _PROFILE_LIMIT, _PROFILE_LIMIT)
        factors = lines / lines.mean(axis=1, keepdims=True)
        edges = (np.arange(num_images + 1) - 0.5, np.arange(len(lines) + 1))
        mesh = axes.pcolormesh(*edges, factors, cmap=_PROFILE_COLOURS, norm=norm)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.invert_yaxis()
        for layer in range(1, num_layers):
            axes.axhline(layer * num_heads, color="black", linewidth=0.6)
        _tick_layers(axes, num_layers, num_heads)
        axes.set_xlabel("images between the question and the image", fontsize=8)
        positions = axes.secondary_xaxis("top", functions=_to_positions(measured))
        positions.tick_params(length=2, labelsize=7)
        positions.set_xlabel("distance in M-RoPE positions", fontsize=7)
    bar = figure.colorbar(mesh, ax=[axes for _, (axes,) in grid], extend="both", pad=0.02)
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["¼", "½", "1", "2", "4"], fontsize=8)
    bar.ax.minorticks_off()
    bar.set_label("attention, over the mean of the head's images", fontsize=8)
    figure.savefig(path, dpi=150)


def draw_low_band(path: Path, found: Sequence[Measured], low_band: float) -> None:
    """The low band's share by layer and head: of the mean profile, hatched where that is mostly noise, and of items."""
    tallest = max(measured.profile_LHN.shape[0] for measured in found)
    figure, grid = _make_grid(found, panel_height=0.8 + 0.16 * min(tallest, _MOST_LINES), parts=2)
    for measured, panel in grid:
        shares = {
            "mean profile": measured.spectrum.low_share(low_band),
            "single items": measured.spectrum.item_low_share(low_band),
        }
        for axes, (name, share_LH) in zip(panel, shares.items(), strict=True):
            axes.patch.set(**_UNKNOWN)
            mesh = axes.pcolormesh(share_LH, cmap=_SHARE_COLOURS, vmin=0, vmax=1)
            axes.invert_yaxis()
            axes.set_title(f"{measured.name}, {measured.num_images} images, {name}", fontsize=9, loc="left")
            axes.set_xlabel("head", fontsize=8)
            axes.set_xticks([])
            _tick_layers(axes, share_LH.shape[0], 1)
    bar = figure.colorbar(mesh, ax=[axes for _, panel in grid for axes in panel], pad=0.02)
    bar.set_label(f"share of energy at periods over {low_band:g} of the range", fontsize=8)
    figure.savefig(path, dpi=150)


def draw_comparison(path: Path, found: Sequence[Measured], low_band: float) -> None:
    """Bars of the means over heads, by checkpoint and size, and a dot for each head."""
    sizes, names = _sizes(found), _names(found)
    figure = Figure(figsize=(3 + 0.5 * 3 * len(sizes) * max(3, len(names)), 4), layout="constrained")
    how_much, of_profile, of_items = figure.subplots(1, 3)
    width = 0.8 / len(names)
    for measured in found:
        summary, name = summarise(measured, low_band), names.index(measured.name)
        place = sizes.index(measured.num_images)
        left = place - 0.4 + (name + 0.5) * width
        for axes, mean, heads_LH in (
            (how_much, summary.variation, measured.variation),
            (of_profile, summary.low_share or 0.0, measured.spectrum.low_share(low_band)),
            (of_items, summary.item_low_share, measured.spectrum.item_low_share(low_band)),
        ):
            colour = matplotlib.colormaps["tab10"](name % 10)
            axes.bar(left, mean, 0.9 * width, color=colour, alpha=0.55, label=measured.name if place == 0 else None)
            axes.plot(np.full(heads_LH.size, left), heads_LH.ravel(), ".", color=colour, markersize=4)
        for axes in (of_profile, of_items):
            axes.hlines(summary.flat_share, place - 0.45, place + 0.45, color="grey", linestyle="--", linewidth=0.9)
    _label_comparison(how_much, sizes, "how much the mean profile varies")
    _label_comparison(of_profile, sizes, "low band of the mean profile")
    _label_comparison(of_items, sizes, "low band of single items")
    how_much.set_ylabel("standard deviation over mean", fontsize=8)
    for axes in (of_profile, of_items):
        axes.set_ylim(0, 1.02)
        axes.set_ylabel(f"share at periods over {low_band:g} of the range", fontsize=8)
        axes.set_xlabel("dashed: attention on one image", fontsize=8)
    figure.legend(*how_much.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=150)


def _label_comparison(axes: Axes, sizes: Sequence[int], title: str) -> None:
    axes.set_xticks(range(len(sizes)), [f"{size} images" for size in sizes])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _make_grid(
    found: Sequence[Measured], *, panel_height: float, parts: int = 1
) -> tuple[Figure, list[tuple[Measured, list[Axes]]]]:
    """A row for each size and a column for each checkpoint, each with so many axes one above the other."""
    sizes, names = _sizes(found), _names(found)
    # A figure without pyplot: no display and no list of open figures.
    size = (1.2 + 3.4 * len(names), 0.4 + panel_height * len(sizes) * parts)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(len(sizes) * parts, len(names), squeeze=False)
    grid = []
    for measured in found:
        first = parts * sizes.index(measured.num_images)
        panel: list[Axes] = all_axes[first : first + parts, names.index(measured.name)].tolist()
        for axes in panel:
            axes.set_title(f"{measured.name}, {measured.num_images} images", fontsize=9, loc="left")
            axes.set_ylabel("layer", fontsize=8)
            axes.tick_params(length=2, labelsize=7)
        grid.append((measured, panel))
    return figure, grid


def _tick_layers(axes: Axes, num_layers: int, rows_per_layer: int) -> None:
    step = -(-num_layers // _MOST_TICKS)
    layers = np.arange(0, num_layers, step)
    axes.set_yticks((layers + 0.5) * rows_per_layer, [str(layer) for layer in layers])


def _to_positions(measured: Measured) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From distances in images to positions, and back."""
    nearest, step = float(measured.distance_positions_N[0]), measured.positions_per_image
    return (lambda images: nearest + images * step), (lambda position: (position - nearest) / step)


def _sizes(found: Sequence[Measured]) -> list[int]:
    return sorted({measured.num_images for measured in found})


def _names(found: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(measured.name for measured in found))
