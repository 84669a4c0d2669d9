"""Writes the trained student as a folder that vLLM serves and rope_gain loads."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rope_gain
from distill.card import write_card
from distill.checkpoint import laid_record, weights_sha256, whole_folder, write_laid
from distill.loading import resolve_path
from distill.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_student(
    folder: Path,
    *,
    model: "PreTrainedModel",
    processor: Any,
    recipe: Recipe,
    training: dict[str, Any],
    log: Sequence[dict[str, Any]],
) -> None:
    """Writes weights, gains, configuration, processor, chat template, model card and laid.json, all or nothing.

    Args:
        training: "steps", "seconds" and "losses" for laid.json.
        log: the entries of log.jsonl.

    Raises:
        ValueError: `folder` exists.
    """
    teacher = None
    if recipe.teacher is not None:
        digest = weights_sha256(Path(resolve_path(recipe.teacher.path)))
        teacher = {"path": recipe.teacher.path, "sha256": digest}
    with whole_folder(folder) as partial:
        rope_gain.save_pretrained(model, partial)
        processor.save_pretrained(partial)
        write_card(partial, recipe=recipe, entries=log, seconds=training["seconds"])
        write_laid(partial, laid_record("student", recipe=asdict(recipe), teacher=teacher, training=training))
