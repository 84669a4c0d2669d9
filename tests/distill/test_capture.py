import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

import rope_gain
from distill.capture import ATTENTION_NAMES, QueryKeyRecorder, check_attention, enable_capture
from distill.recipe import AttentionKind
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
    assert ATTENTION_NAMES["sdpa"] not in (tmp_path / "config.json").read_text()


# One of them is a single token.
LENGTHS = [9, 1, 5]
PACKED_4BT = torch.cat(
    [
        torch.cat([torch.arange(length) for length in LENGTHS])[None],
        torch.cat([POSITIONS_3BT[:, 0, :length] for length in LENGTHS], dim=1),
    ]
)[:, None]


def run_packed(model: Any, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=TOKENS_BT[:1], position_ids=PACKED_4BT, use_cache=False, **kwargs).logits


def one_by_one(model: Any) -> torch.Tensor:
    """Each sample of the packed row in a run of its own."""
    inputs = zip(TOKENS_BT[:1].split(LENGTHS, dim=1), PACKED_4BT[1:].split(LENGTHS, dim=2), strict=True)
    return torch.cat([model(input_ids=ids, position_ids=p, use_cache=False).logits for ids, p in inputs], dim=1)


def flash_attn_varlen_func(
    q_NHD: torch.Tensor,
    k_NKD: torch.Tensor,
    v_NKD: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """What flash-attn documents of its function, computed plainly: the package needs a GPU."""
    assert causal
    assert dropout_p == 0
    assert cu_seqlens_q.dtype == torch.int32
    lengths = cu_seqlens_q.diff().tolist()
    assert torch.equal(cu_seqlens_k, cu_seqlens_q)
    assert max_seqlen_q == max_seqlen_k == max(lengths)
    outputs = []
    for q, k, v in zip(q_NHD.split(lengths), k_NKD.split(lengths), v_NKD.split(lengths), strict=True):
        k_THD, v_THD = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        logits_HTT = torch.einsum("ihd,jhd->hij", q, k_THD) * softmax_scale
        future_TT = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        outputs.append(torch.einsum("hij,jhd->ihd", logits_HTT.masked_fill(future_TT, -torch.inf).softmax(-1), v_THD))
    return torch.cat(outputs)


@pytest.fixture(params=["sdpa", "flash_attention_2", "flex_attention"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AttentionKind:
    package = types.ModuleType("flash_attn")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return request.param  # type: ignore[no-any-return]


# What transformers' flex attention passes to torch, and what torch imports for it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without torch.compile")
def test_every_attention_keeps_packed_samples_apart_and_equals_eager(model: Any, attention: AttentionKind) -> None:
    model.set_attn_implementation({"text_config": "eager"})
    # FlexAttention has no backward pass on a CPU; uncompiled, it needs no compiler.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected, expected_packed = run(model), one_by_one(model)
        enable_capture(model, attention)
        recorder, packed_recorder = QueryKeyRecorder([1]), QueryKeyRecorder([1])
        found = run(model, qk_recorder=recorder)
        found_packed = run_packed(model, qk_recorder=packed_recorder, segment_lengths=LENGTHS)
        # As one sample: what the lengths and the first axis are for.
        mixed = model(input_ids=TOKENS_BT[:1], position_ids=PACKED_4BT[1:], use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_packed, expected_packed, rtol=1e-4, atol=1e-4)
    assert (mixed - expected_packed)[:, LENGTHS[0] :].abs().max() > 0.1
    assert recorder.layers[1].q_BHTD.shape[::2] == (2, 15)
    assert packed_recorder.layers[1].k_BKTD.shape[::2] == (1, 15)


def test_gradients_of_packed_samples_equal_eager_s(model: Any) -> None:
    weight = model.model.language_model.layers[0].self_attn.k_proj.weight
    model.set_attn_implementation({"text_config": "eager"})
    [expected] = torch.autograd.grad(one_by_one(model).square().mean(), weight)
    enable_capture(model)
    [found] = torch.autograd.grad(run_packed(model, segment_lengths=LENGTHS).square().mean(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_attention_that_cannot_be_trained_here_is_refused_by_name(attention: AttentionKind) -> None:
    if attention == "sdpa":
        check_attention(attention, torch.device("cpu"))
        return
    with pytest.raises(ValueError, match=rf"train.attention: '{attention}' does not train on cpu, expected a GPU"):
        check_attention(attention, torch.device("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'flash_attention_2' needs the package flash-attn, which is not installed"):
        check_attention("flash_attention_2", torch.device("cuda"))
