"""What a recording holds of each sample, as far as memory goes."""

from dataclasses import dataclass
from pathlib import Path

from distill.recipe import Recipe
from distill.record import DEFAULT_DTYPE, DEFAULT_TOP_K
from distill.recording.manifest import MANIFEST_FILE, SignalDtype, read_manifest

_BYTES: dict[SignalDtype, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The signals of a recording."""

    value_bytes: int
    """Of a number in queries and keys."""
    top_k: int | None
    """Tokens kept of each answer row; None for the logits of all."""


def load_recorded(recipe: Recipe) -> Recorded | None:
    """The recording that the recipe's teacher names, or what `distill record` makes by default if it is not there yet.

    None for a live teacher, and where there is none.
    """
    if recipe.teacher is None or recipe.teacher.recording is None:
        return None
    folder = Path(recipe.teacher.recording)
    if not (folder / MANIFEST_FILE).exists():
        return Recorded(value_bytes=_BYTES[DEFAULT_DTYPE], top_k=DEFAULT_TOP_K)
    manifest = read_manifest(folder)
    return Recorded(
        value_bytes=_BYTES[manifest.dtype], top_k=None if manifest.logits is None else manifest.logits.top_k
    )
