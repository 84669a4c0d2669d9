"""Draws the dashboards' panels from what a Prometheus holds: python deploy/grafana/picture.py URL --minutes 10

Reads dashboards/*.json, asks Prometheus for every panel's expressions, and writes pictures/*.png with matplotlib. They
show the data as Grafana would be given it, in the same places; Grafana itself looks different and draws it itself.
`sample.py` makes such a Prometheus.
"""

import argparse
import io
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

FOLDER = Path(__file__).parent
DPI, WIDTH_INCHES, UNIT_INCHES = 80, 16, 0.36
NUM_STEPS = 120
"""Points of a curve."""
NUM_COLOURS = 128
"""Of a picture: enough for curves and text, and a third of the bytes."""
GAP_STEPS = 2.5
"""Between neighbours of one curve; over more than this there is no line."""
GREY, LINE = "#555555", 1.4
COLOURS = (
    "#1f5fa8", "#d9822b", "#3d8f5f", "#b23a48", "#7a5aa6", "#5b8a9a", "#a68a3d", "#333333", "#e0a3b5", "#9cc3e6",
    "#8fce9b", "#c9b8e3",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve."""

    label: str
    labels: dict[str, str]
    times: np.ndarray
    """Minutes from the range's end, so at most 0."""
    values: np.ndarray


class Prometheus:
    """Where the data is."""

    def __init__(self, client: httpx.Client, *, minutes: float, rate_interval: str) -> None:
        """
        Args:
            client: has Prometheus' address.
            minutes: until now, that are drawn.
            rate_interval: in place of Grafana's own variable.
        """
        self._client = client
        self._end = round(time.time(), 3)
        self._seconds = 60 * minutes
        self._variables = {"$__rate_interval": rate_interval, "$model": ".+"}

    def ask(self, expression: str, legend: str) -> list[Series]:
        """The curves of a panel's expression.

        Raises:
            httpx.HTTPError: Prometheus does not answer, or refuses the expression.
        """
        for name, value in self._variables.items():
            expression = expression.replace(name, value)
        start, step = self._end - self._seconds, self._seconds / NUM_STEPS
        parameters = {"query": expression, "start": start, "end": self._end, "step": step}
        response = self._client.get("/api/v1/query_range", params=parameters).raise_for_status()
        return [self._series(result, legend) for result in response.json()["data"]["result"]]

    def _series(self, result: dict[str, Any], legend: str) -> Series:
        labels = result["metric"]
        points = np.array([(float(moment), float(value)) for moment, value in result["values"]])
        return Series(
            label=re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend),
            labels=labels,
            times=(points[:, 0] - self._end) / 60,
            values=points[:, 1],
        )


def draw(dashboard: dict[str, Any], prometheus: Prometheus, path: Path) -> None:
    """Writes a dashboard's picture."""
    rows = _rows(dashboard)
    heights = [row[0]["gridPos"]["h"] for _, row in rows]
    height = UNIT_INCHES * (sum(heights) + 1.5 * len(rows))
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(rows), 1, height_ratios=[unit + 1.5 for unit in heights], squeeze=False)[:, 0]
    for part, (title, panels) in zip(parts, rows, strict=True):
        part.suptitle(title, x=0.005, ha="left", fontsize=12, fontweight="bold")
        _draw_row(part, panels, prometheus)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    few = Image.open(buffer).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def _rows(dashboard: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    rows: list[tuple[str, list[dict[str, Any]]]] = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            rows.append((panel["title"], []))
        else:
            rows[-1][1].append(panel)
    return rows


def _draw_row(part: SubFigure, panels: Sequence[dict[str, Any]], prometheus: Prometheus) -> None:
    widths = [panel["gridPos"]["w"] for panel in panels]
    all_axes = part.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        found = [prometheus.ask(target["expr"], target["legendFormat"]) for target in panel["targets"]]
        series = [one for several in found for one in several]
        axes.set_title(panel["title"], loc="left", fontsize=9)
        DRAWERS[panel["type"]](axes, panel, series)


def _draw_stat(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """The last values: several, where a panel's expression gives several curves, as Grafana shows them."""
    text = "   ".join(_format(panel)(one.values[-1]) for one in series) or "no data"
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=22, color=COLOURS[0])
    axes.set_axis_off()


def _draw_curves(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """One above the other where the panel stacks them; what stays 0 there is left out, and so is what has no value."""
    _style(axes, panel)
    is_stacked = "stacking" in panel["fieldConfig"]["defaults"]["custom"]
    series = [one for one in series if np.isfinite(one.values).any() and not (is_stacked and not one.values.any())]
    if not series:
        _say_empty(axes)
        return
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(series))]
    if is_stacked:
        times = np.unique(np.concatenate([one.times for one in series]))
        layers = [_on(times, one) for one in series]
        axes.stackplot(times, layers, labels=[one.label for one in series], colors=colours, alpha=0.75)
    else:
        for one, colour in zip(series, colours, strict=True):
            axes.plot(one.times, _with_gaps(one), color=colour, linewidth=LINE, label=one.label)
    axes.set_ylim(0, 1.05 * axes.dataLim.y1 or 1)
    if any(one.label for one in series):
        is_long = max(len(one.label) for one in series) > 24
        columns = max(1, panel["gridPos"]["w"] // (4 if is_long else 3))
        axes.legend(
            fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=columns, frameon=False, labelspacing=0.25
        )


def _with_gaps(series: Series) -> np.ndarray:
    """The values, without those after which the next is missing, so that no line leads over the gap."""
    steps = np.diff(series.times)
    values = series.values.copy()
    if len(steps):
        values[:-1][steps > GAP_STEPS * steps.min()] = np.nan
    return values


def _on(times: np.ndarray, series: Series) -> np.ndarray:
    """Values at these times, 0 where there are none."""
    values = np.zeros(len(times))
    values[np.searchsorted(times, series.times)] = np.nan_to_num(series.values)
    return values


def _draw_heatmap(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """How many requests fell into each bucket; Prometheus' buckets hold all that is smaller, too."""
    _style(axes, panel)
    buckets = sorted(series, key=lambda one: float(one.labels["le"]))
    if not any(np.nan_to_num(one.values).any() for one in buckets):
        _say_empty(axes)
        return
    times = np.unique(np.concatenate([one.times for one in buckets]))
    cumulative = np.array([_on(times, one) for one in buckets])
    counts = np.diff(cumulative, axis=0, prepend=0).clip(min=0)
    used = np.flatnonzero(counts.sum(axis=1))
    rows = slice(max(0, used.min() - 1), used.max() + 2)
    names = [f"≤ {_short(float(one.labels['le']))}".replace("≤ inf", "more") for one in buckets[rows]]
    shown = np.ma.masked_less(counts[rows], 0.5)
    # Few requests are to be seen beside many.
    mesh = axes.pcolormesh(times, range(len(names)), shown, cmap="YlOrRd", norm=PowerNorm(0.4, vmin=0))
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("requests", fontsize=7)


def _say_empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=GREY)


def _style(axes: Axes, panel: dict[str, Any]) -> None:
    axes.tick_params(labelsize=7)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:.0f} min"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    write = _format(panel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _format(panel: dict[str, Any]) -> Callable[[float], str]:
    return {
        "s": lambda value: f"{value:.3g} s",
        "percentunit": lambda value: f"{100 * value:.3g} %",
        "reqps": lambda value: f"{value:.3g} /s",
        "bytes": lambda value: f"{_short(value)}B",
        "short": _short,
    }[panel["fieldConfig"]["defaults"]["unit"]]


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if size <= abs(value) < math.inf:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


DRAWERS = {"stat": _draw_stat, "timeseries": _draw_curves, "heatmap": _draw_heatmap}


def draw_all(url: str, *, minutes: float, rate_interval: str, folder: Path) -> None:
    """Writes a picture of each dashboard.

    Raises:
        httpx.HTTPError: Prometheus does not answer, or refuses an expression.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        prometheus = Prometheus(client, minutes=minutes, rate_interval=rate_interval)
        for path in sorted((FOLDER / "dashboards").glob("*.json")):
            draw(json.loads(path.read_text()), prometheus, folder / f"{path.stem}.png")


def main() -> None:
    """Draws from a Prometheus that runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="of Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=180, help="until now, that are drawn (default 180)")
    parser.add_argument("--rate-interval", default="5m", help="over which rates are taken (default 5m)")
    parser.add_argument("--folder", type=Path, default=FOLDER / "pictures", help="for the pictures")
    options = parser.parse_args()
    draw_all(options.url, minutes=options.minutes, rate_interval=options.rate_interval, folder=options.folder)


if __name__ == "__main__":
    main()
