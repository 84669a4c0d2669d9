"""A live teacher in fewer bits, by the packages that transformers knows."""

import importlib
import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from distill.recipe import Quantization


def quantization_config(name: Quantization, dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes as `quantization_config`; the head and the embeddings stay as they are.

    NF4 with double quantization is QLoRA's (Dettmers et al., arXiv 2305.14314), the eight bits of bitsandbytes are
    LLM.int8() (arXiv 2208.07339); torchao's are rounded to the nearest, with one scale a row.

    Args:
        dtype: of everything else, and of the products.

    Raises:
        ValueError: the package is not installed.
    """
    package = name.partition("_")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"teacher.quantization: {name!r} needs {package}, which is not installed; install it with: "
            f"pip install {package}, or leave the setting out"
        )
    if name == "bitsandbytes_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "bitsandbytes_4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    torchao = importlib.import_module("torchao.quantization")
    weights = torchao.Int8WeightOnlyConfig if name == "torchao_int8" else torchao.Float8WeightOnlyConfig
    return TorchAoConfig(weights())
