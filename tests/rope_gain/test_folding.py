"""Folded models against the attached ones they came from."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from rope_gain import RopeGainConfig, attach, fold, gain_modules, load_pretrained, save_pretrained
from rope_gain.families import FAMILIES, find_family
from tests.rope_gain.models import HEAD_SIZE, build_tiny, tiny_inputs

STATIC_PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="static")
SHARED = RopeGainConfig(target="query_key", position="static")
GROWING = RopeGainConfig(target="query_key", position="log", reference_length=16)
QWEN3_VL = find_family("Qwen3VLForConditionalGeneration")

# Logits reach about 30 here; float32 keeps seven digits of them, and the decoder's sums lose one or two.
FLOAT32_TOLERANCE = 1e-4


@pytest.fixture
def normed_model():
    """Qwen3-VL: norms between projection and rotation, interleaved M-RoPE."""
    return build_tiny(QWEN3_VL)[0]


def decoder_of(model):
    return model.get_submodule(find_family(type(model).__name__).decoder)


def has_norm(family):
    return "Qwen3" in family.architecture


def every_foldable_config():
    granularities = ("layer", "layer_frequency", "layer_head_frequency")
    for family, granularity, target, layers in itertools.product(
        FAMILIES, granularities, ("query", "query_key"), (None, (1,))
    ):
        if has_norm(family) and granularity == "layer_head_frequency":
            continue
        config = RopeGainConfig(granularity=granularity, target=target, position="static", layers=layers)
        name = "all_layers" if layers is None else f"layer_{layers[0]}"
        yield pytest.param(family, config, id=f"{family.architecture}-{granularity}-{target}-{name}")


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def state(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(("family", "config"), list(every_foldable_config()))
def test_folding_keeps_the_logits_of_a_prompt_of_images(randomize, family, config):
    model, processor = build_tiny(family)
    inputs = tiny_inputs(processor, images=(2, 5))
    stock = logits(model, inputs)
    attach(model, config)
    randomize(model)
    gained = logits(model, inputs)

    fold(model)

    is_token = inputs["attention_mask"].bool()
    folded = logits(model, inputs)
    torch.testing.assert_close(folded[is_token], gained[is_token], rtol=0, atol=FLOAT32_TOLERANCE)
    assert (gained - stock)[is_token].abs().max() > 0.1
    assert type(model).__name__ == family.architecture


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_what_is_left_is_the_stock_model_but_for_the_tensors_before_the_rotation(randomize, family):
    model, stock = build_tiny(family)[0], build_tiny(family)[0]
    attach(model, SHARED)
    randomize(model)

    fold(model)

    assert [(path, type(module)) for path, module in model.named_modules()] == [
        (path, type(module)) for path, module in stock.named_modules()
    ]
    assert model.config.to_dict() == stock.config.to_dict()
    weights = stock.state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}
    parts = ("norm.weight",) if has_norm(family) else ("proj.weight", "proj.bias")
    assert changed == {
        f"{family.decoder}.layers.{layer}.self_attn.{side}_{part}"
        for layer, side, part in itertools.product((0, 1), "qk", parts)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rows_of_a_pair_are_multiplied_in_float32_and_cast_once(model, dtype):
    model.to(dtype)
    attach(model, STATIC_PER_HEAD)
    attention = model.model.language_model.layers[0].self_attn
    gain = gain_modules(model)[0]
    head, pair = 1, 3
    with torch.no_grad():
        # Neither is a bfloat16, so rounding the gain before the product would show.
        gain.query_a[head, pair] = math.log(1.2345)
        gain.key_a[head, pair] = math.log(0.7654)
    sides = [(attention.q_proj, gain.query_a.exp()[head, pair]), (attention.k_proj, gain.key_a.exp()[head, pair])]
    rows = [head * 32 + pair, head * 32 + 16 + pair]
    expected = []
    for projection, factor in sides:
        weight, bias = projection.weight.detach().float(), projection.bias.detach().float()
        weight[rows], bias[rows] = weight[rows] * factor, bias[rows] * factor
        expected.append((weight.to(dtype), bias.to(dtype)))

    fold(model)

    for (projection, _), (weight, bias) in zip(sides, expected, strict=True):
        assert torch.equal(projection.weight, weight)
        assert torch.equal(projection.bias, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_both_members_of_a_pair_are_multiplied_in_a_norm_and_cast_once(normed_model, dtype):
    normed_model.to(dtype)
    attach(normed_model, SHARED)
    attention = decoder_of(normed_model).layers[0].self_attn
    gain = gain_modules(normed_model)[0]
    pair = 3
    with torch.no_grad():
        gain.query_a[0, pair] = math.log(1.2345)
        gain.key_a[0, pair] = math.log(0.7654)
    sides = [(attention.q_norm, gain.query_a.exp()[0, pair]), (attention.k_norm, gain.key_a.exp()[0, pair])]
    expected = []
    for norm, factor in sides:
        weight = norm.weight.detach().float()
        weight[[pair, HEAD_SIZE // 2 + pair]] *= factor
        expected.append(weight.to(dtype))

    fold(normed_model)

    for (norm, _), weight in zip(sides, expected, strict=True):
        assert torch.equal(norm.weight, weight)


def test_a_folded_model_takes_gains_again(model, make_inputs, randomize):
    inputs = make_inputs(images=(3,))
    attach(model, STATIC_PER_HEAD)
    randomize(model)
    fold(model)
    folded = logits(model, inputs)

    attach(model, RopeGainConfig())

    assert torch.equal(logits(model, inputs), folded)


def test_gains_that_depend_on_the_position_are_refused_with_what_to_train_instead(model, randomize):
    attach(model, RopeGainConfig(position="log"))
    randomize(model)
    before = state(model)

    with pytest.raises(ValueError, match=r"got 'log', expected 'static' to fold: b multiplies .*train with 'position:"):
        fold(model)

    assert_unchanged(model, before)


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_gains_per_head_behind_a_norm_are_refused_with_what_to_train_instead(normed_model, randomize, partial):
    attach(normed_model, STATIC_PER_HEAD)
    randomize(normed_model)
    before = state(normed_model)

    message = "got 'layer_head_frequency', expected 'layer' or 'layer_frequency' to fold: .*train with 'granularity:"
    with pytest.raises(ValueError, match=message):
        fold(normed_model, partial=partial)

    assert_unchanged(normed_model, before)


def test_a_position_law_whose_slope_is_nowhere_but_0_folds(model, padded_batch, randomize):
    attach(model, GROWING)
    randomize(model)
    set_slope(model, (0, 1), 0)
    gained = logits(model, padded_batch)

    fold(model)

    assert not gain_modules(model)
    is_token = padded_batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, padded_batch)[is_token], gained[is_token], rtol=0, atol=FLOAT32_TOLERANCE)


@torch.no_grad()
def set_slope(model, layers, value):
    for number in layers:
        gain = gain_modules(model)[number]
        gain.query_b.fill_(value)
        gain.key_b.fill_(value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_a_partial_fold_takes_the_static_factor_and_keeps_the_slope(randomize, tmp_path, family):
    model, processor = build_tiny(family)
    inputs = tiny_inputs(processor, images=(2, 5))
    attach(model, GROWING)
    randomize(model)
    gained = logits(model, inputs)
    slopes = {number: gain.query_b.clone() for number, gain in gain_modules(model).items()}

    fold(model, partial=True)

    is_token = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits(model, inputs)[is_token], gained[is_token], rtol=0, atol=FLOAT32_TOLERANCE)
    assert gain_modules(model).keys() == {0, 1}
    for number, gain in gain_modules(model).items():
        assert not gain.query_a.any()
        assert not gain.key_a.any()
        assert torch.equal(gain.query_b, slopes[number])
    # A stock model, or one with the factor still in the gains, would differ.
    set_slope(model, (0, 1), 0)
    assert (logits(model, inputs) - gained)[is_token].abs().max() > 0.01
    save_pretrained(model, tmp_path)
    assert torch.equal(logits(load_pretrained(tmp_path), inputs), logits(model, inputs))


def test_a_partial_fold_leaves_no_gain_in_layers_without_a_slope(model, padded_batch, randomize, tmp_path):
    attach(model, GROWING)
    randomize(model)
    set_slope(model, (0,), 0)
    gained = logits(model, padded_batch)

    fold(model, partial=True)

    assert gain_modules(model).keys() == {1}
    assert RopeGainConfig.from_dict(model.config.rope_gain) == dataclasses.replace(GROWING, layers=(1,))
    assert gain_modules(model)[1].config.layers == (1,)
    save_pretrained(model, tmp_path)
    is_token = padded_batch["attention_mask"].bool()
    folded = logits(load_pretrained(tmp_path), padded_batch)
    torch.testing.assert_close(folded[is_token], gained[is_token], rtol=0, atol=FLOAT32_TOLERANCE)


def test_a_partial_fold_of_static_gains_is_a_fold(model, randomize):
    attach(model, STATIC_PER_HEAD)
    randomize(model)

    fold(model, partial=True)

    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert not hasattr(model.config, "rope_gain")


def test_what_a_partial_fold_left_does_not_fold_again(model, randomize):
    attach(model, GROWING)
    randomize(model)
    fold(model, partial=True)
    before = state(model)

    with pytest.raises(ValueError, match=r"no part of the gains folds; rope_gain\.position: got 'log'"):
        fold(model, partial=True)

    assert_unchanged(model, before)


def test_a_model_without_gains_is_refused(model):
    with pytest.raises(ValueError, match="it has no gains to fold"):
        fold(model)


def test_a_projection_that_is_more_than_its_weight_is_refused_before_anything_changes(model, randomize):
    attach(model, STATIC_PER_HEAD)
    randomize(model)
    weight_norm(model.model.language_model.layers[1].self_attn.k_proj)
    before = state(model)

    with pytest.raises(
        ValueError, match=r"layers\.1\.self_attn\.k_proj: got .*Parametrized.*expected torch\.nn\.Linear"
    ):
        fold(model)

    assert_unchanged(model, before)


def test_a_norm_that_is_more_than_its_weight_is_refused_before_anything_changes(normed_model, randomize):
    attach(normed_model, SHARED)
    randomize(normed_model)
    weight_norm(decoder_of(normed_model).layers[1].self_attn.k_norm, dim=None)
    before = state(normed_model)

    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_norm: got .*expected a norm with a weight alone"):
        fold(normed_model)

    assert_unchanged(normed_model, before)
