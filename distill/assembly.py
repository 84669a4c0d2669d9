"""Builds a run from its recipe: models, data, loss and trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import rope_gain
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.data.sample import Source
from distill.inputs import check_same_inputs
from distill.loading import choose_device, load_model, load_processor, make_source
from distill.model import SignalModel, Teacher
from distill.objective import Objective
from distill.recipe import Recipe
from distill.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `distill train` drives and exports."""

    trainer: Trainer
    model: "PreTrainedModel"
    processor: Any


def assemble(recipe: Recipe, *, state_path: Path, log_path: Path) -> Run:
    """Loads everything that the recipe names and compares both models' inputs on the first step.

    Raises:
        ValueError: the models do not fit each other, the loss or the data.
    """
    torch.manual_seed(recipe.train.seed)
    device = choose_device(recipe.train)
    cache_bytes = recipe.train.feature_cache_mib * 2**20
    model = _student_model(recipe, device)
    processor = load_processor(recipe.student)
    collate = Collator(processor, model.base_model.get_rope_index)
    source = make_source(recipe.data, seed=recipe.train.seed, count_tokens=collate.count_tokens)
    student = SignalModel(model, freeze_vision=recipe.train.freeze_vision, feature_cache_bytes=cache_bytes)
    teacher = None
    if recipe.teacher is not None:
        teacher = Teacher(load_model(recipe.teacher, device), feature_cache_bytes=cache_bytes)
        _compare_inputs(recipe, source, collate, teacher)
    objective = Objective(
        recipe.loss,
        student=student.shape,
        teacher=None if teacher is None else teacher.shape,
        vocabulary_size=len(processor.tokenizer),
    ).to(device)

    def make_batch(step: int) -> Batch:
        return collate(source.samples(step)).to(device)

    trainer = Trainer(
        recipe,
        student=student,
        teacher=teacher,
        objective=objective,
        make_batch=make_batch,
        state_path=state_path,
        log_path=log_path,
    )
    return Run(trainer=trainer, model=model, processor=processor)


def _student_model(recipe: Recipe, device: torch.device) -> "PreTrainedModel":
    model = load_model(recipe.student, device).train()
    if recipe.gain is not None:
        rope_gain.attach(model, recipe.gain)
    if recipe.train.freeze_vision:
        model.base_model.visual.requires_grad_(False)
    return model


def _compare_inputs(recipe: Recipe, source: Source, collate: Collator, teacher: Teacher) -> None:
    if recipe.teacher is None:
        return
    samples = source.samples(0)
    teacher_collate = Collator(load_processor(recipe.teacher), teacher.model.base_model.get_rope_index)
    check_same_inputs(collate(samples), teacher_collate(samples))
