"""Whole models: against a reference written from the formulas, and the ways a model is run."""

import pytest
import torch
from torch import nn

from rope_gain import RopeGainConfig, attach, detach, gain_modules

PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16)
CONFIGS = [
    pytest.param(RopeGainConfig(granularity="layer", target="query", position="static"), id="layer-query-static"),
    pytest.param(
        RopeGainConfig(granularity="layer_frequency", target="query", reference_length=16), id="frequency-query-log"
    ),
    pytest.param(PER_HEAD, id="head-query_key-log"),
    pytest.param(
        RopeGainConfig(granularity="layer_head_frequency", target="query_key", position="static", layers=(1,)),
        id="head-query_key-static-one_layer",
    ),
]


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("config", CONFIGS)
def test_new_gains_leave_the_logits_bit_for_bit(model, padded_batch, config, implementation, dtype):
    model = model.to(dtype)
    model.set_attn_implementation(implementation)
    stock = logits(model, padded_batch)

    attach(model, config)

    assert torch.equal(logits(model, padded_batch), stock)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("config", CONFIGS)
def test_gained_logits_equal_the_reference(model, make_inputs, reference_logits, randomize, config, implementation):
    inputs = make_inputs(images=(6,))
    stock = logits(model, inputs)
    model.set_attn_implementation(implementation)
    attach(model, config)
    randomize(model)

    gained = logits(model, inputs)

    torch.testing.assert_close(gained[0].double(), reference_logits(model, inputs), rtol=0, atol=1e-4)
    assert (gained - stock).abs().max() > 0.1


def test_any_attention_function_is_given_the_gained_query_and_key(
    model, make_inputs, reference_rotations, randomize, recorded_attention
):
    inputs = make_inputs(images=(3,))
    model.set_attn_implementation(recorded_attention.name)
    attach(model, PER_HEAD)
    randomize(model)

    logits(model, inputs)

    # The first layer's input does not depend on any gain, so its q and k are those of the formula alone.
    for found, expected in zip(recorded_attention.calls[0], reference_rotations(model, inputs), strict=True):
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-4)


def test_padding_does_not_change_a_prompt(model, make_inputs, padded_batch, randomize):
    attach(model, PER_HEAD)
    randomize(model)

    batched = logits(model, padded_batch)

    for row, images in enumerate((2, 5)):
        alone = logits(model, make_inputs(images=(images,)))[0]
        torch.testing.assert_close(batched[row, -len(alone) :], alone, rtol=0, atol=1e-4)


def test_cached_generation_equals_full_forward_passes(model, padded_batch, randomize):
    attach(model, PER_HEAD)
    randomize(model)
    greedy = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}

    cached = model.generate(**padded_batch, **greedy, use_cache=True)

    assert torch.equal(cached, model.generate(**padded_batch, **greedy, use_cache=False))


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(model, padded_batch, randomize, use_reentrant):
    attach(model, PER_HEAD)
    randomize(model)
    model.train()

    def gradients():
        model.zero_grad()
        model(**padded_batch, labels=padded_batch["input_ids"]).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if "language_model" in name}

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    checkpointed = gradients()

    assert all(plain[name].abs().max() > 0 for name in plain if "rope_gain" in name)
    for name, gradient in plain.items():
        assert torch.equal(checkpointed[name], gradient), name


def test_two_layers_have_gains_of_their_own(model, padded_batch):
    attach(model, PER_HEAD)
    changed = {}
    for layer, gain in gain_modules(model).items():
        with torch.no_grad():
            gain.query_a.fill_(0.5)
            changed[layer] = logits(model, padded_batch)
            gain.query_a.fill_(0.0)

    assert (changed[0] - changed[1]).abs().max() > 0.1


def test_parameters_are_float32_and_named_beside_the_projections(model):
    model.to(torch.bfloat16)
    attach(model, RopeGainConfig(granularity="layer_head_frequency", target="query_key", layers=(1,)))

    found = {name: (tuple(p.shape), p.dtype) for name, p in model.named_parameters() if "rope_gain" in name}

    prefix = "model.language_model.layers.1.self_attn.rope_gain"
    assert found == {
        f"{prefix}.query_a": ((4, 16), torch.float32),
        f"{prefix}.query_b": ((4, 16), torch.float32),
        f"{prefix}.key_a": ((2, 16), torch.float32),
        f"{prefix}.key_b": ((2, 16), torch.float32),
    }


def test_detach_restores_the_stock_model(model, padded_batch, randomize):
    def state():
        return [(path, type(module)) for path, module in model.named_modules()], list(model.state_dict())

    before, config, stock = state(), model.config.to_dict(), logits(model, padded_batch)
    attach(model, PER_HEAD)
    randomize(model)

    detach(model)

    assert state() == before
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, padded_batch), stock)


def test_one_model_s_gains_do_not_touch_another(model, make_model, padded_batch, randomize):
    other = make_model()
    stock = logits(other, padded_batch)
    attach(model, PER_HEAD)
    randomize(model)

    assert torch.equal(logits(other, padded_batch), stock)


class UnsupportedModel(nn.Module):
    pass


@pytest.mark.parametrize("function", [lambda m: attach(m, PER_HEAD), detach, gain_modules])
def test_unsupported_models_are_refused_with_the_list_of_supported_ones(function):
    message = "got 'UnsupportedModel', expected one with support for gains: Qwen2ForCausalLM, Qwen3ForCausalLM, "
    with pytest.raises(ValueError, match=message):
        function(UnsupportedModel())


def test_attaching_twice_and_detaching_nothing_are_refused(model):
    with pytest.raises(ValueError, match="it has no gains to detach"):
        detach(model)
    attach(model, PER_HEAD)
    with pytest.raises(ValueError, match="it has gains already; detach them first"):
        attach(model, PER_HEAD)


def test_a_refused_configuration_leaves_the_model_as_it_was(model):
    with pytest.raises(ValueError, match="got layer 5, expected at most 1"):
        attach(model, RopeGainConfig(layers=(0, 5)))

    assert gain_modules(model) == {}
    assert not hasattr(model.config, "rope_gain")
