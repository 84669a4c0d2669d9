"""A checkpoint in the formats of quantised weights that vLLM's CPU build runs, and what Hugging Face then computes.

Dimension letters: N output features, K input features, G groups of input features.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP_SIZE = 32
FLOAT8_MAX = 448.0


@dataclass(frozen=True)
class Format:
    """How the decoder's projections are quantised."""

    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    """weight [N, K] → its quantised values [N, K] and their scale [N, G]."""

    round_activations: Callable[[Tensor], Tensor] | None = None
    """What the kernel does to its input; None where only the weights are quantised."""

    stored: dict[str, Any] | None = None
    """The quantization_config of a checkpoint in the compressed-tensors format; None where vLLM quantises at load."""


def quantize_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    groups_NGK = weight_NK.unflatten(1, (-1, GROUP_SIZE))
    # vLLM's kernel for these takes 16 bits only.
    scale_NG = (groups_NGK.abs().amax(-1) / 7).half().float()
    return (groups_NGK / scale_NG[..., None]).round().flatten(1), scale_NG


def quantize_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    scale_N1 = weight_NK.abs().amax(-1, keepdim=True) / 127
    return (weight_NK / scale_N1).round(), scale_N1


def quantize_float8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    scale_N1 = weight_NK.abs().amax(-1, keepdim=True) / FLOAT8_MAX
    return (weight_NK / scale_N1).to(torch.float8_e4m3fn).float(), scale_N1


def dequantize(values_NK: Tensor, scale_NG: Tensor) -> Tensor:
    return (values_NK.unflatten(1, (scale_NG.shape[1], -1)) * scale_NG[..., None]).flatten(1)


def pack_int4(values_NK: Tensor) -> Tensor:
    """Eight values a word, the first in the lowest bits, each plus 8: int32 [N, K / 8]."""
    nibbles = (values_NK + 8).to(torch.int64).unflatten(1, (-1, 8))
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return words.to(torch.int32)


def compressed_tensors(weights: dict[str, Any], activations: dict[str, Any] | None, layout: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*visual.*"],
        "config_groups": {"group_0": group},
    }


INTEGER = {"type": "int", "symmetric": True}
FORMATS = {
    "int4": Format(
        quantize_int4,
        stored=compressed_tensors(
            INTEGER | {"num_bits": 4, "strategy": "group", "group_size": GROUP_SIZE}, None, "pack-quantized"
        ),
    ),
    "int8": Format(
        quantize_int8,
        round_activations=lambda x: dequantize_rows(x, quantize_int8),
        stored=compressed_tensors(
            INTEGER | {"num_bits": 8, "strategy": "channel"},
            INTEGER | {"num_bits": 8, "strategy": "token", "dynamic": True},
            "int-quantized",
        ),
    ),
    "fp8_per_channel": Format(quantize_float8, round_activations=lambda x: dequantize_rows(x, quantize_float8)),
}


def dequantize_rows(x: Tensor, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    return dequantize(*quantize(x.flatten(0, -2))).view_as(x)


def quantize_checkpoint(folder: Path, quantized: Path, layout: Format) -> None:
    """Copies a LAid checkpoint with the decoder's projections in the compressed-tensors format."""
    shutil.copytree(folder, quantized)
    config = json.loads((folder / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": layout.stored}))
    tensors = load_file(folder / "laid.safetensors")
    for name in [name for name in tensors if is_projection(name)]:
        weight = tensors.pop(name)
        values, scale = layout.quantize(weight.float())
        tensors[f"{name}_scale"] = scale.to(weight.dtype)
        if layout.stored["format"] == "pack-quantized":
            tensors[f"{name}_packed"] = pack_int4(values)
            tensors[f"{name}_shape"] = torch.tensor(weight.shape)
        else:
            tensors[name] = values.to(torch.int8)
    save_file(tensors, quantized / "laid.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def quantize_model(model: Any, layout: Format) -> Any:
    """Makes a Hugging Face model compute, in float32, what the quantised kernels compute; returns it."""
    for linear in projections(model):
        linear.weight.copy_(dequantize(*layout.quantize(linear.weight)))
        if layout.round_activations is not None:
            linear.register_forward_pre_hook(lambda _, args: (layout.round_activations(args[0]),))
    return model


def projections(model: Any) -> Iterator[Any]:
    return (module for name, module in model.named_modules() if is_projection(f"{name}.weight"))


def is_projection(name: str) -> bool:
    return "language_model.layers." in name and name.endswith("_proj.weight")
