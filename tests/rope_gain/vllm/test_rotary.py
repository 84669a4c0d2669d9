"""The custom operator against the Hugging Face functions, without an engine."""

import pytest
import torch

from rope_gain import RopeGain, RopeGainConfig, wheel_guard
from rope_gain.gain import rotate, scale_rotation

wheel_guard.install()

# vLLM and the libraries that it imports warn of their own deprecations.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

NUM_HEADS, NUM_KEY_VALUE_HEADS, HEAD_SIZE, TOKENS = 4, 2, 32, 19
SECTIONS = [4, 6, 6]
CONFIGS = [
    pytest.param(RopeGainConfig(granularity="layer", position="static"), id="layer-query-static"),
    pytest.param(
        RopeGainConfig(granularity="layer_frequency", target="query_key", reference_length=16),
        id="frequency-query_key-log",
    ),
    pytest.param(
        RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16),
        id="head-query_key-log",
    ),
]
# One tolerance a dtype, of the largest value. In bfloat16 vLLM's cache is rounded before the gain, and again after.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 0.01}


@pytest.fixture(scope="module")
def in_vllm_config():
    """vLLM's operators ask the current configuration which of them are on."""
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield


@pytest.fixture
def make_rotary(in_vllm_config):  # noqa: ARG001 (for what it sets)
    """A gained rotary embedding around a stock one, holding all the heads unless told otherwise."""
    from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

    from rope_gain.vllm.rotary import GainedRotaryEmbedding, HeadRange

    def make(config, *, dtype=torch.float32, heads=(0, NUM_HEADS), key_heads=(0, NUM_KEY_VALUE_HEADS), **stock):
        settings = {"mrope_section": SECTIONS, "is_neox_style": True} | stock
        return GainedRotaryEmbedding(
            MRotaryEmbedding(HEAD_SIZE, HEAD_SIZE, 512, base=10_000.0, dtype=dtype, **settings),
            config,
            query_heads=HeadRange(NUM_HEADS, *heads),
            key_heads=HeadRange(NUM_KEY_VALUE_HEADS, *key_heads),
        )

    return make


def random_gain(config):
    gain = RopeGain(
        config, num_heads=NUM_HEADS, num_key_value_heads=NUM_KEY_VALUE_HEADS, head_dim=HEAD_SIZE
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in gain.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return gain


def load(rotary, gain):
    for name, parameter in rotary.named_parameters(recurse=False):
        parameter.weight_loader(parameter, gain.get_parameter(name))
    return rotary


def random_inputs(dtype=torch.float32):
    """Positions of three axes, and q and k as slices of one projection, which is how vLLM passes them."""
    generator = torch.Generator().manual_seed(1)
    positions_3T = torch.randint(0, 500, (3, TOKENS), generator=generator)
    sizes = [NUM_HEADS * HEAD_SIZE, NUM_KEY_VALUE_HEADS * HEAD_SIZE]
    q, k = torch.randn(TOKENS, sum(sizes), generator=generator).to(dtype).split(sizes, dim=-1)
    return positions_3T, q, k


def expected_rotation(gain, positions_3T, q, k):
    """By the Hugging Face functions, which have their own tests, in float32."""
    axis_of_pair = [axis for axis, size in enumerate(SECTIONS) for _ in range(size)]
    positions_TP = positions_3T[axis_of_pair].T.float()
    # vLLM's order of operations: at angles of 500 another order is off by 3e-5.
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    angles_TD = (positions_TP * frequencies).repeat(1, 2)

    def apply(x, side_gain):
        cos, sin = scale_rotation(side_gain, angles_TD.cos()[None], angles_TD.sin()[None], torch.float32)
        x_HTD = x.float().view(TOKENS, -1, HEAD_SIZE).transpose(0, 1)
        return rotate(x_HTD, cos[0], sin[0]).transpose(0, 1).flatten(1)

    query_gain, key_gain = gain(positions_TP)
    return apply(q, query_gain), apply(k, torch.ones(1, 1, 1) if key_gain is None else key_gain)


@pytest.mark.parametrize("method", ["forward_native", "forward_cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", CONFIGS)
def test_it_rotates_as_hugging_face_does(make_rotary, config, dtype, method):
    gain = random_gain(config)
    rotary = load(make_rotary(config, dtype=dtype), gain)
    positions, q, k = random_inputs(dtype)

    found = getattr(rotary, method)(positions, q, k)

    for mine, expected in zip(found, expected_rotation(gain, positions, q, k), strict=True):
        assert mine.dtype == dtype
        scale = expected.abs().max()
        torch.testing.assert_close(mine.float() / scale, expected / scale, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("config", CONFIGS)
def test_zero_parameters_are_the_stock_embedding_bit_for_bit(make_rotary, config):
    rotary = make_rotary(config)
    positions, q, k = random_inputs()

    found = rotary.forward_native(positions, q, k)

    for mine, stock in zip(found, rotary.stock.forward_native(positions, q, k), strict=True):
        assert torch.equal(mine, stock)


def test_text_positions_are_the_same_on_every_axis(make_rotary):
    config = RopeGainConfig(granularity="layer_frequency", target="query_key", reference_length=16)
    rotary = load(make_rotary(config), random_gain(config))
    positions, q, k = random_inputs()

    for one, three in zip(rotary(positions[0], q, k), rotary(positions[0].expand(3, -1), q, k), strict=True):
        assert torch.equal(one, three)


def test_inputs_and_shared_cache_are_left_alone(make_rotary):
    config = RopeGainConfig(granularity="layer_frequency", target="query_key")
    rotary = load(make_rotary(config), random_gain(config))
    positions, q, k = random_inputs()
    before = [tensor.clone() for tensor in (q, k, rotary.stock.cos_sin_cache)]

    rotary(positions, q, k)

    assert all(map(torch.equal, (q, k, rotary.stock.cos_sin_cache), before))


@pytest.mark.parametrize(
    ("num_ranks", "key_heads_of_rank"),
    [
        pytest.param(2, [(0, 1), (1, 1)], id="2_processes"),
        # Four processes and two key-value heads: neighbours hold copies of one head.
        pytest.param(4, [(0, 1), (0, 1), (1, 1), (1, 1)], id="4_processes"),
    ],
)
def test_tensor_parallel_processes_take_their_own_heads(make_rotary, num_ranks, key_heads_of_rank):
    config = RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16)
    gain = random_gain(config)
    positions, q, k = random_inputs()
    expected_q, expected_k = load(make_rotary(config), gain)(positions, q, k)
    held = NUM_HEADS // num_ranks

    for rank, key_heads in enumerate(key_heads_of_rank):
        rotary = load(make_rotary(config, heads=(rank * held, held), key_heads=key_heads), gain)
        q_part = slice(rank * held * HEAD_SIZE, (rank + 1) * held * HEAD_SIZE)
        k_part = slice(key_heads[0] * HEAD_SIZE, (key_heads[0] + 1) * HEAD_SIZE)
        found_q, found_k = rotary(positions, q[:, q_part], k[:, k_part])
        assert torch.equal(found_q, expected_q[:, q_part])
        assert torch.equal(found_k, expected_k[:, k_part])


def test_gains_are_float32_in_a_bfloat16_model(make_rotary):
    rotary = make_rotary(RopeGainConfig(), dtype=torch.bfloat16)

    assert {parameter.dtype for parameter in rotary.parameters()} == {torch.float32}


def test_a_tensor_of_another_shape_is_refused_with_both(make_rotary):
    parameter = make_rotary(RopeGainConfig(granularity="layer_head_frequency")).query_a

    with pytest.raises(ValueError, match=r"query_a: got shape \[1, 16\], expected \[4, 16\]"):
        parameter.weight_loader(parameter, torch.zeros(1, 16))


def test_reading_the_cache_past_the_gain_is_an_error(make_rotary):
    with pytest.raises(RuntimeError, match=r"rotary_emb\.cos_sin_cache: this layer has a RoPE response gain"):
        make_rotary(RopeGainConfig()).cos_sin_cache  # noqa: B018


@pytest.mark.parametrize("stock", [{"mrope_interleaved": True}, {"is_neox_style": False}, {"mrope_section": None}])
def test_another_kind_of_rotation_is_refused(make_rotary, stock):
    with pytest.raises(ValueError, match="expected vLLM's MRotaryEmbedding with chunked sections"):
        make_rotary(RopeGainConfig(), **stock)


def test_registering_twice_is_harmless():
    from vllm import ModelRegistry

    from rope_gain.vllm import register

    register()
    register()

    assert "LAidQwen2_5_VLForConditionalGeneration" in ModelRegistry.get_supported_archs()
