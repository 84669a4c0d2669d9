"""AdamW over the student, its gains and the mixing weights, each with a learning rate of its own."""

from typing import Any

import torch
from torch import nn

from distill.recipe import TrainConfig
from distill.schedule import learning_rate_factor


def make_optimizer(model: nn.Module, objective: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Groups the trained parameters; weight decay acts on the model's matrices only."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gains = [parameter for name, parameter in named if ".rope_gain." in name]
    weights = [parameter for name, parameter in named if ".rope_gain." not in name]
    groups: list[dict[str, Any]] = [
        {
            "params": [weight for weight in weights if weight.ndim >= 2],
            "peak_lr": config.model_lr,
            "weight_decay": config.weight_decay,
        },
        {"params": [weight for weight in weights if weight.ndim < 2], "peak_lr": config.model_lr},
        {"params": gains, "peak_lr": config.gain_lr},
        {"params": list(objective.parameters()), "peak_lr": config.mixing_lr},
    ]
    groups = [{"weight_decay": 0.0, **group, "lr": group["peak_lr"]} for group in groups if group["params"]]
    # The usual pair for transformers: runs of a few hundred steps are too short for a memory of a thousand.
    is_on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=is_on_gpu or None)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Sets each group's rate for this step from its peak."""
    factor = learning_rate_factor(step, config.warmup_steps, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
