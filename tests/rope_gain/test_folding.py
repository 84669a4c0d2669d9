"""Folded models against the attached ones they came from."""

import itertools
import math

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from rope_gain import RopeGainConfig, attach, fold, gain_modules

STATIC_PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="static")

# Logits reach about 30 here; float32 keeps seven digits of them, and the decoder's sums lose one or two.
FLOAT32_TOLERANCE = 1e-4


def every_static_config():
    granularities = ("layer", "layer_frequency", "layer_head_frequency")
    for granularity, target, layers in itertools.product(granularities, ("query", "query_key"), (None, (0,), (1,))):
        config = RopeGainConfig(granularity=granularity, target=target, position="static", layers=layers)
        name = "all_layers" if layers is None else f"layer_{layers[0]}"
        yield pytest.param(config, id=f"{granularity}-{target}-{name}")


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("config", list(every_static_config()))
def test_folding_keeps_the_logits_of_a_prompt_of_images(model, padded_batch, randomize, config):
    stock = logits(model, padded_batch)
    attach(model, config)
    randomize(model)
    gained = logits(model, padded_batch)

    fold(model)

    is_token = padded_batch["attention_mask"].bool()
    folded = logits(model, padded_batch)
    torch.testing.assert_close(folded[is_token], gained[is_token], rtol=0, atol=FLOAT32_TOLERANCE)
    assert (gained - stock)[is_token].abs().max() > 0.1


def test_what_is_left_is_the_stock_model_but_for_four_tensors_a_layer(model, make_model, randomize):
    stock = make_model()
    attach(model, STATIC_PER_HEAD)
    randomize(model)

    fold(model)

    assert [(path, type(module)) for path, module in model.named_modules()] == [
        (path, type(module)) for path, module in stock.named_modules()
    ]
    assert model.config.to_dict() == stock.config.to_dict()
    weights = stock.state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}
    assert changed == {
        f"model.language_model.layers.{layer}.self_attn.{side}_proj.{part}"
        for layer, side, part in itertools.product((0, 1), "qk", ("weight", "bias"))
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


def test_a_folded_model_takes_gains_again(model, make_inputs, randomize):
    inputs = make_inputs(images=(3,))
    attach(model, STATIC_PER_HEAD)
    randomize(model)
    fold(model)
    folded = logits(model, inputs)

    attach(model, RopeGainConfig())

    assert torch.equal(logits(model, inputs), folded)


def test_gains_that_depend_on_the_position_are_refused_with_what_to_train_instead(model, make_inputs, randomize):
    inputs = make_inputs(images=(2,))
    attach(model, RopeGainConfig(position="log"))
    randomize(model)
    gained = logits(model, inputs)

    with pytest.raises(ValueError, match=r"got 'log', expected 'static' to fold: b multiplies .*train with 'position:"):
        fold(model)

    assert torch.equal(logits(model, inputs), gained)


def test_a_model_without_gains_is_refused(model):
    with pytest.raises(ValueError, match="it has no gains to fold"):
        fold(model)


def test_a_projection_that_is_more_than_its_weight_is_refused_before_anything_changes(model, randomize):
    attach(model, STATIC_PER_HEAD)
    randomize(model)
    weight_norm(model.model.language_model.layers[1].self_attn.k_proj)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    with pytest.raises(
        ValueError, match=r"layers\.1\.self_attn\.k_proj: got .*Parametrized.*expected torch\.nn\.Linear"
    ):
        fold(model)

    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
