"""The bytes that autograd keeps, held against what it really saves."""

import contextlib
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import rope_gain
from distill.adapters import add_adapters
from distill.capture import enable_capture
from distill.planning.activations import adapted_layer_bytes, adapter_parameters, autocast_layer_bytes, layer_bytes
from distill.planning.shapes import decoder_shape
from distill.recipe import LoraConfig
from rope_gain import RopeGainConfig

TOKENS, BATCH, HIDDEN = 96, 2, 64

TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        "vision_config": {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": HIDDEN},
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        "vision_config": VISION,
    },
    "qwen3_vl": {
        "text_config": {
            **TEXT,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "mrope_section": [6, 5, 5]},
        },
        "vision_config": {**VISION, "deepstack_visual_indexes": [0]},
    },
}
GAINS = {
    "stock": None,
    "head gains": RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="log"),
    "query gains": RopeGainConfig(granularity="layer_frequency", target="query", position="log"),
    "static gains": RopeGainConfig(granularity="layer", target="query_key", position="static"),
}
LORA = LoraConfig(rank=4)
SMALL_LORA = LoraConfig(rank=4, targets=("q_proj", "o_proj"))


def build(family: str, num_layers: int, dtype: torch.dtype, gain: RopeGainConfig | None) -> Any:
    settings = FAMILIES[family]
    text = {**settings["text_config"], "num_hidden_layers": num_layers}
    config = AutoConfig.for_model(family, **{**settings, "text_config": text})
    model = AutoModelForImageTextToText.from_config(config).to(dtype).train()
    if gain is not None:
        rope_gain.attach(model, gain)
    enable_capture(model)
    return model


def saved_bytes_per_token(model: Any, *, is_autocast: bool) -> float:
    """Of the decoder's forward pass; weights and autocast's copies of them left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x_BTD = torch.randn(BATCH, TOKENS, HIDDEN, dtype=model.dtype, requires_grad=True)
    positions_3BT = torch.arange(TOKENS).expand(3, BATCH, TOKENS)
    autocast = torch.autocast("cpu", torch.bfloat16) if is_autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.base_model.language_model(inputs_embeds=x_BTD, position_ids=positions_3BT, use_cache=False)
    total = sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)
    if is_autocast:
        layers = model.base_model.language_model.layers
        total -= 2 * sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2 and weight.shape[1] > 32)
    return total / (BATCH * TOKENS)


def one_layer(family: str, dtype: torch.dtype, gain: RopeGainConfig | None, lora: LoraConfig | None) -> float:
    """What the second layer adds."""
    totals = []
    for num_layers in (1, 2):
        model = build(family, num_layers, dtype, gain)
        if lora is not None:
            add_adapters(model, lora)
        totals.append(saved_bytes_per_token(model, is_autocast=False))
    return totals[1] - totals[0]


# Static gains are a few bytes for the whole sequence, which the plan leaves out.
NEARLY = {"rel": 1e-3}


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning(family: str, dtype: torch.dtype, gain: str) -> None:
    decoder = decoder_shape(build(family, 1, dtype, None).config.get_text_config())
    planned = layer_bytes(decoder, dtype.itemsize, GAINS[gain])
    assert planned == pytest.approx(one_layer(family, dtype, GAINS[gain], None), **NEARLY)


@pytest.mark.parametrize("lora", [LORA, SMALL_LORA], ids=["all targets", "two targets"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters(family: str, dtype: torch.dtype, lora: LoraConfig) -> None:
    gain = GAINS["head gains"]
    decoder = decoder_shape(build(family, 1, dtype, None).config.get_text_config())
    planned = adapted_layer_bytes(decoder, dtype.itemsize, gain, lora)
    assert planned == pytest.approx(one_layer(family, dtype, gain, lora), **NEARLY)


@pytest.mark.parametrize("lora", [LORA, SMALL_LORA], ids=["all targets", "two targets"])
def test_adapter_parameters(lora: LoraConfig) -> None:
    model = build("qwen3_vl", 2, torch.float32, None)
    before = sum(parameter.numel() for parameter in model.parameters())
    add_adapters(model, lora)
    added = sum(parameter.numel() for parameter in model.parameters()) - before
    assert adapter_parameters(decoder_shape(model.config.get_text_config()), lora) == added


@pytest.mark.parametrize("gain", ["stock", "head gains"])
@pytest.mark.parametrize("family", FAMILIES)
def test_autocast(family: str, gain: str) -> None:
    totals = [
        saved_bytes_per_token(build(family, layers, torch.float32, GAINS[gain]), is_autocast=True) for layers in (1, 2)
    ]
    decoder = decoder_shape(build(family, 1, torch.float32, None).config.get_text_config())
    assert autocast_layer_bytes(decoder, GAINS[gain]) == pytest.approx(totals[1] - totals[0], **NEARLY)
