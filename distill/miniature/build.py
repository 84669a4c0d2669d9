"""Trains the miniature teacher and base student from nothing: first to see, then to find.

The vision tower learns to name objects and is frozen; the text tower then learns haystacks of growing size.
"""

import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.checkpoint import laid_record, whole_folder, write_laid
from distill.miniature.items import Kind
from distill.miniature.models import SIZES, make_model
from distill.miniature.objects import OBJECTS, draw_image
from distill.miniature.phase import Progress, Schedule, run_phase
from distill.miniature.processor import make_processor
from distill.miniature.prompts import PromptMaker, answer_logits, encode_pool

SEEING = Schedule(steps=1200, learning_rate=2e-3, warmup_steps=24, decay_steps=360)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one model of the miniature world is trained."""

    seed: int
    seeing: Schedule = SEEING
    finding: Schedule
    largest_haystack: int
    """The curriculum raises the number of images by half, up to this, whenever accuracy passes 0.8."""
    long_share: float = 0.0
    """Share of steps that draw from 1 to `longest_haystack` images, whatever the curriculum says."""
    longest_haystack: int = 0
    yes_no_share: float = 0.25
    tokens_per_step: int = 8192
    largest_batch: int = 64
    drawings: int = 32
    """Drawings of each pair of objects that the text tower learns from."""


PLANS = {
    "teacher": Plan(
        seed=1,
        finding=Schedule(steps=1400, learning_rate=2e-3, warmup_steps=60, decay_steps=300),
        largest_haystack=200,
    ),
    "base": Plan(
        seed=2,
        finding=Schedule(steps=700, learning_rate=2e-3, warmup_steps=60, decay_steps=300),
        largest_haystack=5,
        long_share=0.03,
        longest_haystack=200,
    ),
}


def build_model(name: str, plan: Plan, folder: Path) -> tuple[Any, Any]:
    """Trains the model of this name; `folder` keeps the state of both phases, to resume from.

    Returns:
        The trained model (float32) and its processor.
    """
    processor = make_processor()
    model = make_model(SIZES[name], processor.tokenizer, plan.seed)
    probe = nn.Linear(SIZES[name].hidden, len(OBJECTS))
    eyes = nn.ModuleDict({"visual": model.model.visual, "probe": probe})
    run_phase(
        f"{name}: seeing",
        plan.seeing,
        eyes,
        lambda step, progress: _seeing_loss(eyes, processor, plan.seed, step, progress),
        {"accuracy": 0.0},
        folder / f"{name}-seeing.pt",
    )
    model.model.visual.requires_grad_(False)
    maker = PromptMaker(model, processor, encode_pool(model, processor, plan.seed, plan.drawings))
    run_phase(
        f"{name}: finding",
        plan.finding,
        model,
        lambda step, progress: _finding_loss(model, maker, plan, step, progress),
        {"images": 2.0, "accuracy": 0.0},
        folder / f"{name}-finding.pt",
    )
    return model.eval(), processor


def build_checkpoint(name: str, plan: Plan, work: Path, folder: Path) -> None:
    """Trains the model of this name and writes its checkpoint folder, in place of an older one."""
    model, processor = build_model(name, plan, work)
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_laid(partial, laid_record("teacher" if name == "teacher" else "base", recipe=asdict(plan)))


def _seeing_loss(eyes: nn.ModuleDict, processor: Any, seed: int, step: int, progress: Progress) -> Tensor:
    """Every merged token of an image names both of its objects: multi-label cross entropy."""
    rng = random.Random(f"seeing/{seed}/{step}")
    pairs = [rng.sample(range(len(OBJECTS)), 2) for _ in range(128)]
    images = [draw_image((OBJECTS[a], OBJECTS[b]), rng) for a, b in pairs]
    inputs = processor.image_processor(images, return_tensors="pt")
    pooled = eyes["visual"](inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    logits = eyes["probe"](pooled).reshape(len(images), -1, len(OBJECTS))
    truth = functional.one_hot(torch.tensor(pairs), len(OBJECTS)).sum(1)[:, None].expand_as(logits)
    found = torch.zeros_like(logits).scatter(-1, logits.topk(2).indices, 1.0)
    progress["accuracy"] += 0.1 * ((found == truth).all(-1).float().mean().item() - progress["accuracy"])
    return functional.binary_cross_entropy_with_logits(logits, truth.float())


def _finding_loss(model: Any, maker: PromptMaker, plan: Plan, step: int, progress: Progress) -> Tensor:
    """Cross entropy of the answer's tokens on haystacks from the curriculum's range."""
    rng = random.Random(f"finding/{plan.seed}/{step}")
    limit = int(progress["images"])
    num_images = limit if rng.random() < 0.5 else rng.randint(1, limit)
    if rng.random() < plan.long_share:
        num_images = rng.randint(1, plan.longest_haystack)
    kind: Kind = "yes_no" if rng.random() < plan.yes_no_share else "open"
    batch_size = min(plan.largest_batch, max(2, plan.tokens_per_step // (6 * num_images + 45)))
    logits, truth = answer_logits(model, maker.make(plan.seed * 10_000_000 + step, batch_size, num_images, kind))
    if num_images == limit and kind == "open":
        accuracy = (logits.argmax(-1) == truth).all(-1).float().mean().item()
        _advance(progress, accuracy, plan.largest_haystack)
    return functional.cross_entropy(logits.flatten(0, 1), truth.flatten())


def _advance(progress: Progress, accuracy: float, largest: int) -> None:
    progress["accuracy"] += 0.2 * (accuracy - progress["accuracy"])
    if progress["accuracy"] > 0.8 and progress["images"] < largest:
        progress["images"] = min(largest, progress["images"] + (progress["images"] + 1) // 2)
        progress["accuracy"] = 0.0
