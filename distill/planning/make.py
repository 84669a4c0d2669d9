"""Puts a plan together."""

from distill.planning.compute import measure_flops_per_second, plan_compute
from distill.planning.fit import fit_matching, fit_rows
from distill.planning.memory import Execution, plan_memory
from distill.planning.report import Plan
from distill.planning.shapes import load_shape
from distill.planning.step import Assumption, plan_step
from distill.recipe import Recipe


def make_plan(
    recipe: Recipe,
    *,
    assumption: Assumption,
    execution: Execution,
    tflops: float | None = None,
    limit_bytes: int | None = None,
    measured_bytes: int | None = None,
) -> Plan:
    """The plan of a recipe.

    Args:
        tflops: of one device; by default measured here, if this machine has such a device.

    Raises:
        ValueError: the sizes of a model are not known.
    """
    student = load_shape(recipe.student, "student.path")
    teacher = None if recipe.teacher is None else load_shape(recipe.teacher, "teacher.path")
    step = plan_step(recipe, student.vision, assumption)
    part = step.part(execution.num_processes * recipe.train.micro_batches)
    fits, fitting_rows = [], None
    if limit_bytes is not None and teacher is not None and recipe.loss.matching_weight > 0:
        fits = fit_matching(recipe, student, teacher, part, execution, limit_bytes)
        fitting_rows = fit_rows(recipe, student, teacher, part, execution, limit_bytes)
    rate = 1e12 * tflops if tflops is not None else _measured_rate(recipe, execution)
    return Plan(
        recipe=recipe,
        student=student,
        teacher=teacher,
        step=step,
        part=part,
        memory=plan_memory(recipe, student, teacher, part, execution),
        compute=plan_compute(recipe, student, teacher, step),
        flops_per_second=None if rate is None else rate * execution.num_processes,
        limit_bytes=limit_bytes,
        fits=fits,
        fitting_rows=fitting_rows,
        measured_bytes=measured_bytes,
    )


def planned_device(recipe: Recipe) -> str:
    """`cpu` or `cuda`: what the recipe says, or what `auto` takes on this machine."""
    import torch

    if recipe.train.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return recipe.train.device


def _measured_rate(recipe: Recipe, execution: Execution) -> float | None:
    import torch

    if execution.device == "cuda" and not torch.cuda.is_available():
        return None
    is_bfloat16 = recipe.student.dtype == "bfloat16" or recipe.train.mixed_precision == "bf16"
    return measure_flops_per_second(execution.device, "bfloat16" if is_bfloat16 else "float32")
