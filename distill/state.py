"""A run's saved state: with it and the recipe, training goes on as if it had never stopped."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.recipe import Recipe
from distill.sharding.shares import fill, placed, whole

# What may differ between the run that saved and the run that resumes: it does not touch the result.
_FREE_SETTINGS = ("output", "train.save_every", "train.feature_cache_mib", "train.trackers")


@torch.no_grad()
def save_state(
    path: Path | None,
    *,
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    values: dict[str, Any],
) -> None:
    """Writes the trained parameters, the optimizer and plain values, replacing an older state in one step.

    What is sharded is gathered, tensor by tensor, into the host memory of the process that writes: the file is the
    same whatever number of processes train.

    Args:
        path: None in the processes that do not write; all of them take part.
    """

    def gathered(value: Any) -> Any:
        full = whole(value)
        if path is None:
            return None
        return full.detach() if full is value else full.cpu()

    trained = {name: _trained(module) for name, module in modules.items()}
    of_optimizer = optimizer.state_dict()
    state = {
        "recipe": _plain(recipe),
        "modules": {name: _each(gathered, of_module) for name, of_module in trained.items()},
        "optimizer": {
            "param_groups": of_optimizer["param_groups"],
            "state": {index: _each(gathered, moments) for index, moments in of_optimizer["state"].items()},
        },
        "values": values,
        "rng": torch.get_rng_state(),
    }
    if path is None:
        return
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(
    path: Path,
    *,
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
) -> dict[str, Any]:
    """Puts the trained parameters and the optimizer's states back and returns the plain values.

    Args:
        parameters: those of the optimizer, in its order.

    Raises:
        ValueError: the state was saved under another recipe; the message names the settings that differ.
    """
    state = _read(path)
    differing = _differences(state["recipe"], _plain(recipe), "")
    if differing:
        raise ValueError(f"{path}: saved under another recipe, expected the same to resume: {'; '.join(differing)}")
    for name, module in modules.items():
        _fill(module, state["modules"][name])
    moments = {
        index: {key: placed(value, parameters[index]) for key, value in of_parameter.items()}
        for index, of_parameter in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": moments})
    torch.set_rng_state(state["rng"])
    values: dict[str, Any] = state["values"]
    return values


def load_trained(path: Path, *, name: str, module: nn.Module) -> None:
    """Puts the trained parameters of one of the saved modules into a module that is built like it."""
    _fill(module, _read(path)["modules"][name])


def _read(path: Path) -> dict[str, Any]:
    # Mapped, so that what is sharded need not be in the memory of every process.
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return state


@torch.no_grad()
def _fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        fill(parameters[key], value)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _each(change: Callable[[Any], Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: change(value) for key, value in values.items()}


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
