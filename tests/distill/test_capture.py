from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

import rope_gain
from distill.capture import ATTENTION_NAME, QueryKeyRecorder, enable_capture
from rope_gain import RopeGainConfig

TOKENS_BT = torch.arange(10, 40).reshape(2, 15)
POSITIONS_3BT = torch.stack([torch.arange(15), torch.arange(15) // 2, torch.arange(15) % 3])[:, None].expand(3, 2, 15)


@pytest.fixture
def model(model_folders: dict[str, Path]) -> Any:
    return rope_gain.load_pretrained(model_folders["base"])


def run(model: Any, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=TOKENS_BT, position_ids=POSITIONS_3BT, use_cache=False, **kwargs).logits


def test_q_and_k_equal_projection_and_rotation_by_hand(model: Any) -> None:
    enable_capture(model)
    recorder = QueryKeyRecorder([0])
    run(model, qk_recorder=recorder)
    decoder = model.model.language_model
    layer = decoder.layers[0]
    x_BTC = layer.input_layernorm(decoder.embed_tokens(TOKENS_BT))
    q_BHTD, k_BKTD = (
        projection(x_BTC).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    cos, sin = decoder.rotary_emb(x_BTC, POSITIONS_3BT)
    expected_q, expected_k = apply_rotary_pos_emb(q_BHTD, k_BKTD, cos, sin)
    assert list(recorder.layers) == [0]
    assert torch.equal(recorder.layers[0].q_BHTD, expected_q)
    assert torch.equal(recorder.layers[0].k_BKTD, expected_k)
    assert recorder.layers[0].scale == layer.self_attn.head_dim**-0.5


def test_the_gain_is_in_what_is_captured(model: Any) -> None:
    enable_capture(model)
    plain, gained = QueryKeyRecorder([0]), QueryKeyRecorder([0])
    run(model, qk_recorder=plain)
    rope_gain.attach(model, RopeGainConfig(granularity="layer", target="query", position="static"))
    gain = model.model.language_model.layers[0].self_attn.rope_gain
    gain.query_a.data.fill_(2.0).log_()
    run(model, qk_recorder=gained)
    torch.testing.assert_close(gained.layers[0].q_BHTD, 2 * plain.layers[0].q_BHTD)
    assert torch.equal(gained.layers[0].k_BKTD, plain.layers[0].k_BKTD)


def test_capturing_changes_no_logit_and_keeps_gradients(model: Any) -> None:
    before = run(model)
    enable_capture(model)
    recorder = QueryKeyRecorder([0, 1])
    assert torch.equal(run(model, qk_recorder=recorder), before)
    assert torch.equal(run(model), before)
    recorder.layers[1].q_BHTD.square().sum().backward()
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_gives_the_same_gradients(model: Any) -> None:
    enable_capture(model)
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    gradients = []
    for with_checkpointing in (False, True):
        if with_checkpointing:
            model.train().gradient_checkpointing_enable()
        recorder = QueryKeyRecorder([1])
        loss = run(model, qk_recorder=recorder).square().mean()
        (gradient,) = torch.autograd.grad(loss + recorder.layers[1].k_BKTD.square().mean(), weight)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_capture_is_not_written_into_a_saved_configuration(model: Any, tmp_path: Path) -> None:
    enable_capture(model)
    model.save_pretrained(tmp_path)
    assert ATTENTION_NAME not in (tmp_path / "config.json").read_text()
