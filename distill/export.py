"""Writes the trained student as a folder that vLLM serves and rope_gain loads."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rope_gain
from distill.card import write_card
from distill.checkpoint import laid_record, weights_sha256, whole_folder, write_laid
from distill.loading import resolve_path
from distill.recipe import Recipe, TeacherConfig
from distill.recording.manifest import read_manifest

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
        training: "steps", "processes", "seconds" and "losses" for laid.json.
        log: the entries of log.jsonl.

    Raises:
        ValueError: `folder` exists.
    """
    teacher = None if recipe.teacher is None else _teacher_record(recipe.teacher)
    with whole_folder(folder) as partial:
        rope_gain.save_pretrained(model, partial)
        processor.save_pretrained(partial)
        write_card(partial, recipe=recipe, entries=log, seconds=training["seconds"])
        write_laid(partial, laid_record("student", recipe=asdict(recipe), teacher=teacher, training=training))


def _teacher_record(config: TeacherConfig) -> dict[str, Any]:
    """What laid.json says of the teacher; one that was recorded need not be there any more."""
    if config.recording is not None:
        return {"path": config.path, "sha256": read_manifest(Path(config.recording)).teacher["weights_sha256"]}
    return {"path": config.path, "sha256": weights_sha256(Path(resolve_path(config.path)))}
