"""What changes with training progress: the tilt's exponent and the learning rate. Pure functions of the step."""

import math
from typing import Literal

GammaSchedule = Literal["linear", "cosine", "step"]

_STAIRS = 4


def gamma_at(progress: float, schedule: GammaSchedule, gamma_max: float) -> float:
    """The tilt's exponent at this share of the training, from 0 at the start to `gamma_max` at the end.

    Progressive distance weighting is from the LAid paper (arXiv 2512.21576); its schedule is not given there, so the
    shapes are ours: a straight line, half a cosine, or four equal stairs.

    Args:
        progress: 0 at the first step, 1 at the last.
    """
    if schedule == "linear":
        share = progress
    elif schedule == "cosine":
        share = (1 - math.cos(math.pi * progress)) / 2
    else:
        share = min(math.floor(progress * _STAIRS), _STAIRS - 1) / (_STAIRS - 1)
    return gamma_max * share


def learning_rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """Linear warm-up to 1 over `warmup_steps`, then half a cosine that would reach 0 just after the last step."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2
