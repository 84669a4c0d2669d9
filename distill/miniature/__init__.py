"""A world small enough to train in: coloured shapes, Visual Haystacks' questions, real architectures."""

from pathlib import Path
from typing import Literal


def checkpoint_path(name: Literal["teacher", "base"]) -> Path:
    """The committed checkpoint folder of this name; `distill miniature build` remakes both."""
    if name not in ("teacher", "base"):
        raise ValueError(f"checkpoint: {name!r}, expected 'teacher' or 'base'")
    return Path(__file__).parent / "checkpoints" / name
