"""A LoRA adapter in the files of the peft library, and the model with it merged."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
RANK = 4
PREFIX, FACTORS = "base_model.model.", {"A": "lora_A.weight", "B": "lora_B.weight"}


def write_adapter(folder: Path, model: Any) -> None:
    """A random one on the projections of every decoder layer's attention, as large as their own weights."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, module in model.named_modules():
        if "language_model.layers." in name and name.rpartition(".")[2] in PROJECTIONS:
            shapes = {"A": (RANK, module.in_features), "B": (module.out_features, RANK)}
            for factor, shape in shapes.items():
                weight = torch.randn(shape, generator=generator) * 0.2
                tensors[f"{PREFIX}{name}.{FACTORS[factor]}"] = weight
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": PROJECTIONS, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@torch.no_grad()
def merge_adapter(model: Any, folder: Path) -> Any:
    """Adds the adapter to the weights of a Hugging Face model; returns the model."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, down in tensors.items():
        if name.endswith(FACTORS["A"]):
            path = name.removeprefix(PREFIX).removesuffix(f".{FACTORS['A']}")
            up = tensors[f"{PREFIX}{path}.{FACTORS['B']}"]
            model.get_submodule(path).weight += settings["lora_alpha"] / settings["r"] * (up @ down)
    return model
