"""A tiny random Qwen2.5-VL in which attention, and so the gain, matters; and what its decoder should compute."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from distill.miniature.processor import make_processor
from rope_gain import gain_modules
from rope_gain.families import find_family
from tests.rope_gain.models import (
    CHUNKED,
    HEAD_SIZE,
    NUM_HEADS,
    NUM_KEY_VALUE_HEADS,
    ROPE_THETA,
    build_tiny,
    tiny_inputs,
)

FAMILY = find_family("Qwen2_5_VLForConditionalGeneration")


@pytest.fixture(scope="session")
def processor() -> Any:
    return make_processor()


@pytest.fixture(scope="session")
def make_model() -> Callable[[], Any]:
    return lambda: build_tiny(FAMILY)[0]


@pytest.fixture
def model(make_model: Callable[[], Any]) -> Any:
    return make_model()


@pytest.fixture(scope="session")
def make_inputs(processor: Any) -> Callable[..., dict[str, Tensor]]:
    """Prompts with these numbers of images, padded on the left."""

    return lambda *, images: tiny_inputs(processor, images=images)


@pytest.fixture(scope="session")
def randomize() -> Callable[[Any], None]:
    """Sets gains that differ in every layer, head and pair."""

    def fill(model: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for gain in gain_modules(model).values():
                for parameter in gain.parameters():
                    parameter.normal_(0, 0.3, generator=generator)

    return fill


@dataclass
class RecordedAttention:
    """An attention implementation of its own name that keeps the q and k of each decoder layer."""

    name: str = "recorded"
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, module: Any, q_BHTD: Tensor, k_BHTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        if hasattr(module, "rope_gain"):  # not the vision tower
            self.calls.append((q_BHTD, k_BHTD))
        return sdpa_attention_forward(module, q_BHTD, k_BHTD, *args, **kwargs)


@pytest.fixture
def recorded_attention() -> Iterator[RecordedAttention]:
    attention = RecordedAttention()
    AttentionInterface.register(attention.name, attention)
    AttentionMaskInterface.register(attention.name, sdpa_mask)
    yield attention
    del AttentionInterface._global_mapping[attention.name]
    del AttentionMaskInterface._global_mapping[attention.name]


@pytest.fixture(scope="session")
def reference_rotations() -> Callable[..., tuple[Tensor, Tensor]]:
    """(model with gains, inputs of one prompt) → the first layer's gained q and k, float64 [H, T, D]."""

    def rotations(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x_TC, positions_TP = decoder_input(model, inputs)
        q_HTD, k_HTD, _ = gained_projections(model, 0, x_TC, positions_TP)
        return q_HTD, k_HTD

    return rotations


@pytest.fixture(scope="session")
def reference_logits() -> Callable[..., Tensor]:
    """(model with gains, inputs of one prompt) → logits [T, vocabulary] of a float64 decoder by the formulas."""

    def compute(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        x_TC, positions_TP = decoder_input(model, inputs)
        for number, layer in enumerate(model.model.language_model.layers):
            x_TC = x_TC + attend(model, number, x_TC, positions_TP)
            y_TC = rms_norm(x_TC, layer.post_attention_layernorm)
            gated = torch.nn.functional.silu(linear(y_TC, layer.mlp.gate_proj)) * linear(y_TC, layer.mlp.up_proj)
            x_TC = x_TC + linear(gated, layer.mlp.down_proj)
        return linear(rms_norm(x_TC, model.model.language_model.norm), model.lm_head)

    return compute


@torch.no_grad()
def decoder_input(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Token and image embeddings [T, C], and the position [T, P] of each rotary pair's own axis; float64."""
    embeddings_TC = model.get_input_embeddings()(inputs["input_ids"])[0]
    images = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    embeddings_TC[inputs["input_ids"][0] == model.config.image_token_id] = torch.cat(list(images))
    positions_3BT, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    return embeddings_TC.double(), positions_3BT[CHUNKED, 0].T.double()


@torch.no_grad()
def gained_projections(model: Any, number: int, x_TC: Tensor, positions_TP: Tensor) -> tuple[Tensor, ...]:
    """The layer's gained and rotated q and k, and its v, [heads, T, D]."""
    layer = model.model.language_model.layers[number]
    normed_TC = rms_norm(x_TC, layer.input_layernorm)
    gain = gain_modules(model).get(number)
    return tuple(
        gain_and_rotate(split_heads(linear(normed_TC, projection)), gain, side, positions_TP)
        for side, projection in (
            ("query", layer.self_attn.q_proj),
            ("key", layer.self_attn.k_proj),
            ("value", layer.self_attn.v_proj),
        )
    )


def gain_and_rotate(x_HTD: Tensor, gain: Any, side: str, positions_TP: Tensor) -> Tensor:
    """Pair i as the complex number x[i] + j·x[i+P], times g·exp(j·m·θ)."""
    if side == "value":
        return x_HTD
    num_pairs = HEAD_SIZE // 2
    angles_TP = positions_TP * ROPE_THETA ** (-torch.arange(num_pairs).double() / num_pairs)
    log_gain = torch.zeros(1, 1, 1).double()
    if (a_HP := getattr(gain, f"{side}_a", None)) is not None:
        log_gain = log_gain + a_HP.double()[:, None]
    if (b_HP := getattr(gain, f"{side}_b", None)) is not None:
        length = gain.config.reference_length
        log_gain = log_gain + b_HP.double()[:, None] * torch.log(1 + positions_TP / length)
    pairs = torch.complex(*x_HTD.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles_TP), angles_TP)
    gained = pairs * log_gain.exp()
    return torch.cat((gained.real, gained.imag), dim=-1)


@torch.no_grad()
def attend(model: Any, number: int, x_TC: Tensor, positions_TP: Tensor) -> Tensor:
    q_HTD, k_HTD, v_HTD = gained_projections(model, number, x_TC, positions_TP)
    group = NUM_HEADS // NUM_KEY_VALUE_HEADS
    k_HTD, v_HTD = k_HTD.repeat_interleave(group, 0), v_HTD.repeat_interleave(group, 0)
    scores_HTT = q_HTD @ k_HTD.mT / HEAD_SIZE**0.5
    future_TT = torch.ones(scores_HTT.shape[1:]).triu(1).bool()
    mixed_HTD = scores_HTT.masked_fill(future_TT, -torch.inf).softmax(-1) @ v_HTD
    output = model.model.language_model.layers[number].self_attn.o_proj
    return linear(mixed_HTD.transpose(0, 1).flatten(1), output)


def split_heads(x_TC: Tensor) -> Tensor:
    return x_TC.unflatten(-1, (-1, HEAD_SIZE)).transpose(0, 1)


@torch.no_grad()
def linear(x: Tensor, module: Any) -> Tensor:
    return torch.nn.functional.linear(x, module.weight.double(), None if module.bias is None else module.bias.double())


@torch.no_grad()
def rms_norm(x: Tensor, module: Any) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt() * module.weight.double()


@pytest.fixture
def padded_batch(make_inputs):
    return make_inputs(images=(2, 5))
