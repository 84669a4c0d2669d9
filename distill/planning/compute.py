"""Floating-point operations and seconds of a step.

A product of [a, b] and [b, c] is 2abc operations. Attention is causal: half of its products are counted, as flash
kernels compute them (Dao, arXiv 2307.08691, section 4.1, which also gives its backward pass as 2.5 forward passes).
Everything that is not a matrix product is left out, so the seconds are a lower bound.
"""

import time
from dataclasses import dataclass

from distill.planning.memory import is_recorded
from distill.planning.shapes import ModelShape
from distill.planning.step import StepShape, matched_rows
from distill.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Operations of one step on all devices together."""

    forward_linear: int
    forward_attention: int
    backward_linear: int
    backward_attention: int
    teacher_linear: int
    teacher_attention: int
    vision: int
    losses: int

    @property
    def total(self) -> int:
        """Of the whole step."""
        return sum(vars(self).values())


def plan_compute(recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape) -> Compute:
    """The operations of the largest step; `step` is the whole one, not a device's share."""
    linear, attention = _decoder_forward(student, step)
    again = 1 if recipe.train.gradient_checkpointing else 0
    vision = _vision_forward(student, step) * (1 if recipe.train.freeze_vision else 3)
    teacher_linear = teacher_attention = 0
    if teacher is not None and not is_recorded(recipe):
        teacher_linear, teacher_attention = _decoder_forward(teacher, step)
        vision += _vision_forward(teacher, step)
    return Compute(
        forward_linear=linear,
        forward_attention=attention,
        # Gradients of the inputs, and of weights that are trained, each as much as the forward pass.
        backward_linear=((1 if recipe.lora is not None else 2) + again) * linear,
        backward_attention=5 * attention // 2 + again * attention,
        teacher_linear=teacher_linear,
        teacher_attention=teacher_attention,
        vision=vision,
        losses=_losses(recipe, student, teacher, step),
    )


def _decoder_forward(model: ModelShape, step: StepShape) -> tuple[int, int]:
    """Linear: 2 operations for each weight and token, the head on answer rows only. Attention: 4·T²q/2 a layer."""
    decoder = model.decoder
    answers = step.num_samples * step.answer_rows
    linear = 2 * (model.parameters.layers * step.num_tokens + decoder.hidden * decoder.vocabulary * answers)
    attention = 2 * decoder.num_layers * step.num_samples * step.sample_tokens**2 * decoder.query
    return linear, attention


def _vision_forward(model: ModelShape, step: StepShape) -> int:
    """Blocks on every patch, what joins patches on every token; attention in windows, or over the whole image."""
    vision, parameters = model.vision, model.parameters
    window = vision.window_patches or step.image_patches
    seen = vision.num_full_blocks * step.image_patches + (vision.depth - vision.num_full_blocks) * window
    attention = 4 * vision.hidden * step.image_patches * seen
    blocks = 2 * parameters.vision_blocks * step.image_patches
    rest = 2 * (parameters.vision - parameters.vision_blocks) * step.image_tokens
    return step.distinct_images * (blocks + rest + attention)


def _losses(recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape) -> int:
    """Matching: both models' maps, the mix and its gradient, the gradients of q and k. Alignment: the mixes."""
    if teacher is None:
        return 0
    loss, ours, theirs = recipe.loss, student.decoder, teacher.decoder
    total = 0
    if loss.matching_weight > 0:
        rows = matched_rows(step, loss.matching)
        # Rows are causal: all of them see half of the keys on average, the last ones nearly all.
        keys = step.sample_tokens - rows / 2
        per_pair = 6 * ours.query + 2 * theirs.query
        if loss.matching.mixing == "softmax":
            per_pair += 4 * ours.num_heads * theirs.num_heads
        total += len(loss.matching.layers) * int(step.num_samples * rows * keys) * per_pair
    if loss.alignment_weight > 0:
        heads = ours.num_heads * theirs.query + ours.num_key_value_heads * theirs.key
        total += len(loss.alignment.layers) * 4 * heads * step.num_samples * step.rows(loss.alignment.rows)
    return total


def measure_flops_per_second(device: str, dtype: str) -> float:
    """Operations a second of a large matrix product here, in about a second: a bound no model reaches."""
    import torch

    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    best = 0.0
    deadline = time.perf_counter() + 1.0
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        a = a @ b
        a = a / a.norm()
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
