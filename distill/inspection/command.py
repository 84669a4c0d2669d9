"""`distill inspect`: what the model amplified, by layer, wavelength and axis."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from distill.checkpoint import read_laid

if TYPE_CHECKING:
    from distill.gains import CheckpointGains
    from distill.inspection.spectrum import Position

_DESCRIPTION = """\
Prints the learned gains of a checkpoint: which wavelengths the model amplified, on which axis and in which layers.
Reads config.json and the gain tensors, not the model's weights."""

_EXAMPLES = """examples:
  distill inspect runs/miniature/student                        tables on the terminal
  distill inspect runs/miniature/student --figure gains.png     and a heatmap
  distill inspect runs/miniature/student --at 4000              gains at m = 4000 beside those at the start
  distill inspect runs/miniature/student --json > gains.json    every number, for a program

A rotary pair turns once in its wavelength, 2π/θ: short ones tell neighbours apart, long ones reach across the prompt.
M-RoPE gives each pair an axis: an image takes one position of time and as many of height and width as it has rows and
columns. Gains that depend on the position m are shown at the start of the prompt, m = 0, and at the end of the model's
window: the effective window in tokens if 'distill evaluate' has measured it (tokens of images share positions, so no
position in such a prompt is above that), else the last position that the model is made for.

Of query and key only the product matters to the attention logits: it has rows of its own.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "inspect",
        help="show which wavelengths a student amplified",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint with gains")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw a heatmap into this file")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--at", type=float, metavar="M", help="the position to show beside the start")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reads, prints and draws; returns 0.

    Raises:
        ValueError: the checkpoint has no gains or they do not fit it, or an option's value is wrong.
    """
    checkpoint, figure = arguments.checkpoint, arguments.figure
    if figure is not None and figure.suffix != ".png":
        raise ValueError(f"--figure: {figure}, expected a name that ends in .png")
    # Imported when needed: torch takes seconds, and every verb's help would wait for it.
    from distill.gains import read_gains
    from distill.inspection.spectrum import make_spectrum
    from distill.inspection.table import format_tables, to_json

    gains = read_gains(checkpoint)
    folded = (read_laid(checkpoint) or {}).get("folded")
    source = folded["source"]["path"] if folded else None
    spectrum = make_spectrum(gains, _choose_positions(checkpoint, gains, arguments.at))
    if arguments.json:
        head = {"checkpoint": str(checkpoint), "architecture": gains.family.architecture, "folded_from": source}
        print(json.dumps(head | {"rope_gain": gains.config.to_dict()} | to_json(spectrum), indent=2, allow_nan=False))
    else:
        note = (
            [f"the static part was folded into the weights and is not shown; it is still in {source}"] if source else []
        )
        print("\n".join([_describe(checkpoint, gains), *note]), format_tables(spectrum), sep="\n\n")
    if figure is not None:
        from distill.inspection.figure import draw_gains

        draw_gains(figure, spectrum, _describe(checkpoint, gains))
        if not arguments.json:
            print(f"\nwrote {figure}")
    return 0


def _describe(checkpoint: Path, gains: "CheckpointGains") -> str:
    config = gains.config
    law = "g = exp(a)" if config.position == "static" else f"g = exp(a + b·log1p(m/{config.reference_length:g}))"
    unit = " and ".join(config.granularity.replace("_", ", ").rsplit(", ", 1))
    return f"{checkpoint}: {gains.family.architecture}, one gain per {unit}, {law}"


def _choose_positions(checkpoint: Path, gains: "CheckpointGains", at: float | None) -> "list[Position]":
    """The start, and the end of the window where the gains depend on the position."""
    from distill.inspection.spectrum import Position

    if at is not None and not at > 0:
        raise ValueError(f"--at: {at:g}, expected a position above 0")
    if gains.config.position == "static":
        if at is not None:
            raise ValueError(f"--at: {at:g}, but these gains are static: the same at every position")
        return [Position("any position", 0.0, "")]
    start = Position("m = 0", 0.0, "the start of the prompt")
    if at is not None:
        return [start, Position(f"m = {at:g}", at, "the position asked for")]
    tokens = _effective_window(checkpoint)
    if tokens:
        return [start, Position(f"m = {tokens:.0f}", tokens, "the effective window in tokens, as measured")]
    last = gains.text_config.max_position_embeddings - 1
    return [start, Position(f"m = {last}", float(last), "the last position that the model is made for")]


def _effective_window(checkpoint: Path) -> float | None:
    """In tokens, if `distill evaluate` has measured it."""
    from distill.evaluate.report import read_evaluation

    if (read_laid(checkpoint) or {}).get("effective_window") is None:
        return None
    return read_evaluation(checkpoint).default_window.tokens
