"""The model card of a student: what it was made from, how, and its training curve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from distill.recipe import Recipe

CURVE_FILE = "training.png"


def write_card(folder: Path, *, recipe: Recipe, entries: Sequence[dict[str, Any]], seconds: float) -> None:
    """Writes README.md, in the form the Hub reads, and the picture that it shows.

    Args:
        entries: the lines of log.jsonl.
        seconds: the training's time.
    """
    draw_losses(folder / CURVE_FILE, entries)
    (folder / "README.md").write_text(_card(recipe, entries, seconds), encoding="utf-8")


def draw_losses(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Draws each unweighted loss term against the step, on a logarithmic axis."""
    # A figure without pyplot: no display and no list of open figures.
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in entries]
    for name in entries[-1]["losses"]:
        axes.plot(steps, [entry["losses"][name] for entry in entries], linewidth=1.2, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, unweighted")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _card(recipe: Recipe, entries: Sequence[dict[str, Any]], seconds: float) -> str:
    teacher = "none" if recipe.teacher is None else f"`{recipe.teacher.path}`"
    last = entries[-1]
    samples, images = (sum(entry[name] for entry in entries) for name in ("samples", "images"))
    header = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": recipe.student.path,
        "tags": ["laid", "long-context", "distillation"],
    }
    load = (
        "Stock transformers and vLLM load it."
        if recipe.gain is None
        else "It has a learned RoPE gain: load it with `rope_gain.load_pretrained(folder)`, or serve it with vLLM and "
        "this project's plug-in; without them it is refused."
    )
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# A long-window student

Made by long-window anchoring distillation (LAid, [arXiv 2512.21576](https://arxiv.org/abs/2512.21576)) with
`distill train`. {load}

| | |
|---|---|
| student, before | `{recipe.student.path}` |
| teacher | {teacher} |
| steps | {last["step"] + 1} |
| samples, images | {samples}, {images} |
| training time | {seconds:.0f} s |

The whole recipe, the versions and the measured effective window are in `laid.json`; `distill evaluate` measures the
window and puts it there.

![losses]({CURVE_FILE})

Last step: {", ".join(f"{name} {value:.4g}" for name, value in last["losses"].items())}.
"""
