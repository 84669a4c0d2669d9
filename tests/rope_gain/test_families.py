"""Every family with a gain: one row of `TINY` each, the same properties for all."""

import pytest
import torch
import transformers

from rope_gain import RopeGainConfig, attach, detach, gain_modules, load_pretrained, save_pretrained
from rope_gain.families import FAMILIES
from tests.rope_gain.conftest import gain_and_rotate
from tests.rope_gain.models import HEAD_SIZE, TINY, build_tiny, tiny_inputs

PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.architecture, scope="module")
def family(request):
    return request.param


@pytest.fixture
def built(family):
    return build_tiny(family)


@pytest.fixture
def model(built):
    return built[0]


@pytest.fixture
def inputs(built):
    """A padded batch of two prompts."""
    return tiny_inputs(built[1], images=(2, 5))


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_every_family_has_a_row():
    assert set(TINY) == {family.architecture for family in FAMILIES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_new_gains_leave_the_logits_bit_for_bit(model, inputs, implementation, dtype):
    model = model.to(dtype)
    model.set_attn_implementation(implementation)
    stock = logits(model, inputs)

    attach(model, PER_HEAD)

    assert torch.equal(logits(model, inputs), stock)


def test_each_layer_attends_by_the_gained_query_and_key_of_the_formula(
    family, model, inputs, randomize, recorded_attention
):
    """Of what stock computes before the rotation, in every layer; all that follows the rotation is stock's own."""
    unrotated, positions = [], []
    decoder = model.get_submodule(family.decoder)
    for layer in decoder.layers:
        for side in ("q", "k"):
            last = getattr(layer.self_attn, f"{side}_norm", None) or getattr(layer.self_attn, f"{side}_proj")
            last.register_forward_hook(lambda *call: unrotated.append(call[-1]))

    def keep_positions(_, args, kwargs):
        positions.append(kwargs.get("position_ids", args[-1]))

    decoder.rotary_emb.register_forward_pre_hook(keep_positions, with_kwargs=True)
    model.set_attn_implementation(recorded_attention.name)
    stock = logits(model, inputs)
    attach(model, PER_HEAD)
    randomize(model)
    for records in (unrotated, positions, recorded_attention.calls):
        records.clear()

    gained = logits(model, inputs)

    assert (gained - stock).abs().max() > 0.5
    axes = list(TINY[family.architecture].axes)
    positions_BTP = (positions[0].expand(3, *positions[0].shape[-2:])[axes]).movedim(0, -1).double()
    found = [x_BHTD for call in recorded_attention.calls for x_BHTD in call]
    sides = [(gain, side) for gain in gain_modules(model).values() for side in ("query", "key")]
    assert len(found) == len(unrotated) == len(sides)
    for mine, x, (gain, side) in zip(found, unrotated, sides, strict=True):
        x_BHTD = x.unflatten(-1, (-1, HEAD_SIZE)) if x.ndim == 3 else x
        x_BHTD = x_BHTD.transpose(1, 2).double()
        for row, positions_TP in enumerate(positions_BTP):
            expected = gain_and_rotate(x_BHTD[row], gain, side, positions_TP)
            torch.testing.assert_close(mine[row].double(), expected, rtol=1e-5, atol=1e-4)


def test_cached_generation_equals_full_forward_passes(model, inputs, randomize):
    attach(model, PER_HEAD)
    randomize(model)
    greedy = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}

    cached = model.generate(**inputs, **greedy, use_cache=True)

    assert torch.equal(cached, model.generate(**inputs, **greedy, use_cache=False))


def test_gradients_reach_every_gain(model, inputs):
    attach(model, PER_HEAD)

    model(**inputs, labels=inputs["input_ids"]).loss.backward()

    for gain in gain_modules(model).values():
        for name, parameter in gain.named_parameters():
            assert parameter.grad.abs().max() > 0, name


def test_a_checkpoint_gives_the_same_model_back(model, inputs, randomize, tmp_path):
    attach(model, PER_HEAD)
    randomize(model)
    save_pretrained(model, tmp_path / "one")

    loaded = load_pretrained(tmp_path / "one")

    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    # A model that was loaded is saved as one that was built.
    save_pretrained(loaded, tmp_path / "two")
    assert torch.equal(logits(load_pretrained(tmp_path / "two"), inputs), logits(model, inputs))


def test_gains_stay_float32_in_a_model_that_is_not(model, inputs, tmp_path):
    attach(model, PER_HEAD)
    save_pretrained(model, tmp_path)

    loaded = load_pretrained(tmp_path, dtype=torch.bfloat16)

    assert logits(loaded, inputs).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for gain in gain_modules(loaded).values() for p in gain.parameters())


def test_plain_transformers_finds_no_weights(family, model, tmp_path):
    attach(model, PER_HEAD)
    save_pretrained(model, tmp_path)

    with pytest.raises(OSError, match="no file named"):
        getattr(transformers, family.architecture).from_pretrained(tmp_path)


def test_detach_restores_the_stock_model(family, model, inputs, randomize, tmp_path):
    def state():
        return [(path, type(module)) for path, module in model.named_modules()], list(model.state_dict())

    before, stock = state(), logits(model, inputs)
    attach(model, PER_HEAD)
    randomize(model)

    detach(model)

    assert state() == before
    assert torch.equal(logits(model, inputs), stock)
    save_pretrained(model, tmp_path)
    assert type(load_pretrained(tmp_path)).__name__ == family.architecture
