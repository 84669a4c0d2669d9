"""The files of a LAid checkpoint folder: stock's, but for the names of the weights.

The weights are `laid*.safetensors` and there is no `model.safetensors`: plain transformers ignores the
architecture's name in config.json and would drop the gains with a warning, so it must not find the weights at
all. vLLM reads every `*.safetensors` and refuses an architecture it does not know.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rope_gain.config import RopeGainConfig
from rope_gain.families import Family

STOCK_STEM = "model"
LAID_STEM = "laid"
GAIN_MARK = ".self_attn.rope_gain."


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def weights_entry(folder: Path) -> str:
    """The file to open first: `laid.safetensors`, or the index of its shards.

    Raises:
        FileNotFoundError: the folder holds neither.
    """
    for name in (f"{LAID_STEM}.safetensors", f"{LAID_STEM}.safetensors.index.json"):
        if (folder / name).is_file():
            return name
    raise FileNotFoundError(f"{folder}: no {LAID_STEM}.safetensors and no {LAID_STEM}.safetensors.index.json")


def check_not_mixed(folder: Path, stem: str) -> None:
    """ValueError if the folder has weights named `stem`: engines that read all files would mix two models."""
    if found := sorted(folder.glob(f"{stem}*.safetensors")):
        raise ValueError(f"folder: {found[0]} holds another checkpoint's weights; choose another folder")


def publish(staging: Path, folder: Path) -> None:
    """Moves a stock checkpoint from `staging` into `folder`, its weights renamed, in place of older ones."""
    for old in folder.glob(f"{LAID_STEM}*.safetensors*"):
        old.unlink()
    for file in sorted(staging.iterdir()):
        if file.name == f"{STOCK_STEM}.safetensors.index.json":
            index = json.loads(file.read_text(encoding="utf-8"))
            index["weight_map"] = {name: _laid_name(shard) for name, shard in index["weight_map"].items()}
            file.write_text(json.dumps(index, indent=2), encoding="utf-8")
        file.replace(folder / _laid_name(file.name))


def check_gain_tensors(
    folder: Path,
    family: Family,
    config: RopeGainConfig,
    *,
    num_layers: int,
    shapes: dict[str, tuple[int, int]],
) -> None:
    """Compares the gain tensors in the files with what the configuration and the model's sizes call for.

    Raises:
        ValueError: a tensor is missing, is not called for or has another shape; both shapes are given.
    """
    found = _gain_shapes(folder)
    wanted = {
        f"{family.gain_prefix(layer)}.{name}": shape
        for layer in config.gained_layers(num_layers)
        for name, shape in shapes.items()
    }
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{folder}: {name}: got {_describe(found.get(name))}, expected {_describe(wanted.get(name))} "
                f"by the model's sizes and its rope_gain configuration"
            )


def _gain_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for file in folder.glob(f"{LAID_STEM}*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                if GAIN_MARK in name:
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def _describe(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {list(shape)}"


def _laid_name(file_name: str) -> str:
    """`model-00001-of-00002.safetensors` → `laid-…`; files that hold no weights keep their names."""
    if ".safetensors" in file_name and file_name.startswith(STOCK_STEM):
        return LAID_STEM + file_name.removeprefix(STOCK_STEM)
    return file_name
