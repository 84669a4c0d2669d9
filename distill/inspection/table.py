"""The gains on the terminal, and as JSON."""

from typing import Any

from distill.aligned import align
from distill.inspection.spectrum import Band, Spectrum, Summary, heads_apart, make_bands, summarise

_PREFIXES = ("", "k", "M", "G")


def format_tables(spectrum: Spectrum) -> str:
    """What the positions are, the gains by axis and wavelength, and by layer."""
    notes = ["geometric mean of the gains (least - largest)"]
    if any(position.meaning for position in spectrum.positions):
        notes += [f"  {position.name}: {position.meaning}" for position in spectrum.positions]
    return "\n\n".join(["\n".join(notes), _by_band(spectrum), _by_layer(spectrum)])


def to_json(spectrum: Spectrum) -> dict[str, Any]:
    """All that the tables and the figure show, and every pair's gain: the geometric mean of its heads'."""
    return {
        "positions": [position._asdict() for position in spectrum.positions],
        "pairs": [pair._asdict() for pair in spectrum.pairs],
        "bands": [
            {"axis": band.axis, "wavelength": [band.least, 10 * band.least], "pairs": len(band.pairs)}
            | _gains_to_json(spectrum, pairs=band.pairs)
            for band in make_bands(spectrum.pairs)
        ],
        "layers": [
            {"layer": number} | _gains_to_json(spectrum, layer=row) | {"pairs": _pairs_to_json(spectrum, row)}
            for row, number in enumerate(spectrum.layers)
        ],
    }


def short_number(value: float) -> str:
    """Three digits at most: 6.3, 35, 350, 1.2k, 5.4M."""
    prefix = 0
    while value >= 999.5 and prefix < len(_PREFIXES) - 1:
        value, prefix = value / 1000, prefix + 1
    digits = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
    return digits + _PREFIXES[prefix]


def _by_band(spectrum: Spectrum) -> str:
    header = ("axis", "wavelength", "pairs", "gain", *(position.name for position in spectrum.positions))
    rows = [row for band in make_bands(spectrum.pairs) for row in _band_rows(spectrum, band)]
    return f"by wavelength, in positions (tokens, in text)\n{align([header, *rows])}"


def _band_rows(spectrum: Spectrum, band: Band) -> list[tuple[str, ...]]:
    wavelength = f"{short_number(band.least)} - {short_number(10 * band.least)}"
    labels = (band.axis, wavelength, str(len(band.pairs)))
    rows = []
    for side, log_gain in spectrum.log_gains.items():
        cells = (_cell(summarise(at_position[..., band.pairs])) for at_position in log_gain)
        rows.append((*labels, side, *cells))
        labels = ("", "", "")
    return rows


def _by_layer(spectrum: Spectrum) -> str:
    header = ("layer", "gain", *(position.name for position in spectrum.positions))
    has_heads = spectrum.log_gains["query"].shape[2] > 1
    if has_heads:
        header += ("heads apart",)
    rows = [header]
    for row, number in enumerate(spectrum.layers):
        label = str(number)
        for side, log_gain in spectrum.log_gains.items():
            cells = [_cell(summarise(at_position)) for at_position in log_gain[:, row]]
            if has_heads:
                cells.append(f"{float(heads_apart(log_gain[-1, row]).mean()):.2f}")
            rows.append((label, side, *cells))
            label = ""
    table = f"by layer\n{align(rows)}"
    if has_heads:
        name = spectrum.positions[-1].name
        table += f"\nheads apart: the factor of one standard deviation between heads at {name}, mean over the pairs"
    return table


def _cell(summary: Summary) -> str:
    return f"{summary.mean:#.3g} ({summary.least:#.2g} - {summary.largest:#.2g})"


def _gains_to_json(spectrum: Spectrum, **selected: Any) -> dict[str, Any]:
    """Summaries by side, in the order of the positions."""
    gains = {}
    for side, log_gain in spectrum.log_gains.items():
        part = log_gain[:, selected["layer"]] if "layer" in selected else log_gain[..., selected["pairs"]]
        gains[side] = [summarise(at_position)._asdict() for at_position in part]
    return {"gains": gains}


def _pairs_to_json(spectrum: Spectrum, row: int) -> dict[str, Any]:
    return {
        side: {
            "mean": log_gain[:, row].mean(dim=1).exp().tolist(),
            "heads_apart": heads_apart(log_gain[:, row]).tolist(),
        }
        for side, log_gain in spectrum.log_gains.items()
    }
