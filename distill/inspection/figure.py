"""The gains as a heatmap: layers against rotary pairs, these by axis and wavelength."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from distill.inspection.spectrum import RotaryPair, Spectrum, heads_apart
from distill.inspection.table import short_number

_COLOURS = {"gain": "RdBu_r", "spread": "Greys"}
_BAR_LABELS = {
    "gain": "gain (geometric mean over heads)",
    "spread": "factor of one standard deviation between heads",
}

# Gains near 1 look pale, and gains that are all 1 need some scale.
_LEAST_LIMIT = 1.1
_SHOWN_SHARE = 0.99

_PANEL_WIDTH, _LEAST_PANEL_HEIGHT, _LAYER_HEIGHT = 4.6, 0.9, 0.09  # inches
_BAR_WIDTH = 0.8
_NUM_TICKS = 9


class _Panel(NamedTuple):
    title: str
    kind: str
    """What is drawn: "gain", or "spread" for the factor between heads."""
    values_LP: Tensor


def draw_gains(path: Path, spectrum: Spectrum, title: str) -> None:
    """Draws a row of panels for each side: a panel for each position and, of gains per head, one of their spread.

    Args:
        path: the PNG file to write.
        spectrum: the gains.
        title: of the whole figure.
    """
    grid = [_make_panels(spectrum, side) for side in spectrum.log_gains]
    kinds = list(dict.fromkeys(panel.kind for panel in grid[0]))
    norms = {kind: _make_norm([panel for row in grid for panel in row if panel.kind == kind]) for kind in kinds}
    panel_height = max(_LEAST_PANEL_HEIGHT, _LAYER_HEIGHT * len(spectrum.layers))
    # A figure without pyplot: no display and no list of open figures.
    size = (0.8 + _PANEL_WIDTH * len(grid[0]) + _BAR_WIDTH * len(kinds), 0.8 + (panel_height + 0.7) * len(grid))
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(len(grid), len(grid[0]), squeeze=False, sharex=True, sharey=True)
    order = _order(spectrum.pairs)
    for axes_row, row in zip(all_axes, grid, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            values_LP = panel.values_LP[:, order].numpy()
            axes.pcolormesh(values_LP, cmap=_COLOURS[panel.kind], norm=norms[panel.kind])
            _label(axes, panel.title, [spectrum.pairs[pair] for pair in order], spectrum.layers)
    for kind in kinds:
        columns = [column for column, panel in enumerate(grid[0]) if panel.kind == kind]
        _add_bar(figure, all_axes[:, columns].ravel().tolist(), kind, norms[kind])
    for axes in all_axes[:, 0]:
        axes.set_ylabel("layer", fontsize=9)
    for axes in all_axes[-1]:
        axes.set_xlabel("wavelength, in positions (tokens, in text)", fontsize=9)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def _make_panels(spectrum: Spectrum, side: str) -> list[_Panel]:
    log_gain = spectrum.log_gains[side]
    panels = [
        _Panel(f"{side}, {position.name}", "gain", at_position.mean(dim=1).exp())
        for position, at_position in zip(spectrum.positions, log_gain, strict=True)
    ]
    # Keys may have one head where queries have several.
    if spectrum.log_gains["query"].shape[2] > 1:
        panels.append(
            _Panel(f"{side}, {spectrum.positions[-1].name}, between heads", "spread", heads_apart(log_gain[-1]))
        )
    return panels


def _make_norm(panels: Sequence[_Panel]) -> LogNorm:
    """Logarithmic; of gains, with 1 in the middle. A few extreme gains do not bleach all others."""
    sizes = torch.cat([panel.values_LP.log().abs().flatten() for panel in panels])
    limit = max(_LEAST_LIMIT, math.exp(float(sizes.quantile(_SHOWN_SHARE))))
    return LogNorm(1 / limit if panels[0].kind == "gain" else 1, limit)


def _order(pairs: Sequence[RotaryPair]) -> list[int]:
    """The pairs by axis, and by wavelength within it."""
    axes = list(dict.fromkeys(pair.axis for pair in pairs))
    return sorted(range(len(pairs)), key=lambda number: (axes.index(pairs[number].axis), pairs[number].wavelength))


def _label(axes: Axes, title: str, pairs: Sequence[RotaryPair], layers: Sequence[int]) -> None:
    """Wavelengths below, the M-RoPE axes above, layers at the side; `pairs` as they are drawn."""
    names = [pair.axis for pair in pairs]
    sections = [(name, names.index(name), names.count(name)) for name in dict.fromkeys(names)]
    ticks: list[int] = []
    for name, start, size in sections:
        num_ticks = max(1, round(_NUM_TICKS * size / len(pairs)))
        ticks += [start + math.floor((tick + 0.5) * size / num_ticks) for tick in range(num_ticks)]
        if len(sections) > 1:
            axes.annotate(
                name,
                (start + size / 2, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        if start:
            axes.axvline(start, color="black", linewidth=0.8)
    axes.set_xticks(
        [tick + 0.5 for tick in ticks], [short_number(pairs[tick].wavelength) for tick in ticks], fontsize=8
    )
    step = math.ceil(len(layers) / 14)
    axes.set_yticks(np.arange(0, len(layers), step) + 0.5, [str(layer) for layer in layers[::step]], fontsize=8)
    axes.tick_params(length=2, labelbottom=True)
    axes.set_title(title, fontsize=9, loc="left", pad=16 if len(sections) > 1 else 6)


def _add_bar(figure: Figure, all_axes: list[Axes], kind: str, norm: LogNorm) -> None:
    extend = "both" if kind == "gain" else "max"
    colours = ScalarMappable(norm, _COLOURS[kind])
    bar = figure.colorbar(colours, ax=all_axes, aspect=40, pad=0.02, extend=extend)
    ticks = np.geomspace(*colours.get_clim(), 5).tolist()
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks], fontsize=8)
    bar.ax.minorticks_off()
    bar.set_label(_BAR_LABELS[kind], fontsize=8)
