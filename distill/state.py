"""A run's saved state: with it and the recipe, training goes on as if it had never stopped."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.recipe import Recipe

# What may differ between the run that saved and the run that resumes: it does not touch the result.
_FREE_SETTINGS = ("output", "train.save_every", "train.feature_cache_mib", "train.trackers")


def save_state(path: Path, *, recipe: Recipe, modules: dict[str, nn.Module], values: dict[str, Any]) -> None:
    """Writes the trained parameters of the modules and plain values, replacing an older state in one step."""
    state = {
        "recipe": _plain(recipe),
        "modules": {name: _trained(module) for name, module in modules.items()},
        "values": values,
        "rng": torch.get_rng_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path, *, recipe: Recipe, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Puts the trained parameters back and returns the plain values.

    Raises:
        ValueError: the state was saved under another recipe; the message names the settings that differ.
    """
    state = torch.load(path, weights_only=True)
    differing = _differences(state["recipe"], _plain(recipe), "")
    if differing:
        raise ValueError(f"{path}: saved under another recipe, expected the same to resume: {'; '.join(differing)}")
    for name, module in modules.items():
        parameters = dict(module.named_parameters())
        for key, value in state["modules"][name].items():
            parameters[key].data.copy_(value)
    torch.set_rng_state(state["rng"])
    values: dict[str, Any] = state["values"]
    return values


def _trained(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in module.named_parameters() if parameter.requires_grad}


def _plain(recipe: Recipe) -> Any:
    """The recipe as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _differences(saved: Any, new: Any, key: str) -> list[str]:
    if key in _FREE_SETTINGS or saved == new:
        return []
    if isinstance(saved, dict) and isinstance(new, dict):
        names = sorted(saved.keys() | new.keys())
        parts = (_differences(saved.get(name), new.get(name), f"{key}.{name}".lstrip(".")) for name in names)
        return [difference for part in parts for difference in part]
    return [f"{key} was {saved!r}, is {new!r}"]
