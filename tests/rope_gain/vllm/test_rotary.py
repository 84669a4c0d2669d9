"""The custom operator against the formula, without an engine."""

import functools

import pytest
import torch

from rope_gain import RopeGain, RopeGainConfig

# vLLM and the libraries that it imports warn of their own deprecations.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

NUM_HEADS, NUM_KEY_VALUE_HEADS, HEAD_SIZE, TOKENS = 4, 2, 32, 19
NUM_PAIRS = HEAD_SIZE // 2
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | YARN
KINDS = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3"} | LLAMA3,
    "yarn": {"rope_type": "yarn"} | YARN,
    "chunked": {"rope_type": "default", "mrope_section": [4, 6, 6]},
    "chunked_yarn": {"rope_type": "yarn", "mrope_section": [4, 6, 6]} | YARN,
    "interleaved": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
}
# As Qwen2-VL and Qwen3-VL lay the pairs out: time, height and width.
AXES = {
    "chunked": [0] * 4 + [1] * 6 + [2] * 6,
    "chunked_yarn": [0] * 4 + [1] * 6 + [2] * 6,
    "interleaved": [0, 1, 2] * 5 + [0],
}
CONFIGS = [
    pytest.param(
        RopeGainConfig(granularity=granularity, target=target, position=position, reference_length=16),
        id=f"{granularity}-{target}-{position}",
    )
    for granularity in ("layer", "layer_frequency", "layer_head_frequency")
    for target in ("query", "query_key")
    for position in ("static", "log")
]
METHODS = ["forward_native", "forward_cpu"]
PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16)
# Of the largest value; the reference rounds the angle as vLLM does.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def in_vllm_config():
    """vLLM's operators ask the current configuration which of them are on."""
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield


@pytest.fixture
def make_stock(in_vllm_config):  # noqa: ARG001 (for what it sets)
    from vllm.model_executor.layers.rotary_embedding import get_rope

    def make(kind="chunked", dtype=torch.float32, **settings):
        return get_rope(HEAD_SIZE, 512, rope_parameters={"rope_theta": 10_000.0} | KINDS[kind], dtype=dtype, **settings)

    return make


@pytest.fixture
def gain_of(in_vllm_config):  # noqa: ARG001 (for what it sets)
    """A gained rotary embedding around a stock one, holding all the heads unless told otherwise."""
    from rope_gain.vllm.rotary import GainedRotaryEmbedding, HeadRange
    from rope_gain.vllm.terms import StepTerms

    def make(stock, config, heads=(0, NUM_HEADS), key_heads=(0, NUM_KEY_VALUE_HEADS)):
        length = config.reference_length if config.position == "log" else None
        return GainedRotaryEmbedding(
            StepTerms(stock, reference_length=length, max_tokens=TOKENS),
            config,
            head_size=stock.head_size,
            query_heads=HeadRange(NUM_HEADS, *heads),
            key_heads=HeadRange(NUM_KEY_VALUE_HEADS, *key_heads),
        )

    return make


def random_gain(config, seed=0):
    gain = RopeGain(
        config, num_heads=NUM_HEADS, num_key_value_heads=NUM_KEY_VALUE_HEADS, head_dim=HEAD_SIZE
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in gain.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return gain


def load(rotary, gain):
    for name, parameter in rotary.named_parameters(recurse=False):
        parameter.weight_loader(parameter, gain.get_parameter(name))
    return rotary


def rotate(rotary, positions, q, k, method="forward"):
    """One step of one layer: the model fills the terms, the layer rotates."""
    rotary.terms.fill(positions)
    return getattr(rotary, method)(positions, q, k)


def random_inputs(kind, dtype=torch.float32):
    """Positions, and q and k as slices of one projection, which is how vLLM passes them."""
    generator = torch.Generator().manual_seed(1)
    positions_3T = torch.randint(0, 500, (3, TOKENS), generator=generator)
    sizes = [NUM_HEADS * HEAD_SIZE, NUM_KEY_VALUE_HEADS * HEAD_SIZE]
    q, k = torch.randn(TOKENS, sum(sizes), generator=generator).to(dtype).split(sizes, dim=-1)
    return positions_3T if kind in AXES else positions_3T[0], q, k


def rotate_pairs(stock, kind, positions, x, a_HP=None, b_HP=None):
    """Pair i as a complex number, times its turn in the stock's float32 cache and its gain: complex [T, H, P]."""
    axes = positions if positions.ndim == 2 else positions.expand(3, -1)
    positions_TP = axes[AXES.get(kind, [0] * NUM_PAIRS)].T
    cache = stock._compute_cos_sin_cache().double()
    turns_TP = torch.complex(*(half.gather(0, positions_TP) for half in cache.chunk(2, dim=-1)))
    log_gain = torch.zeros(1, 1, 1).double()
    if a_HP is not None:
        log_gain = log_gain + a_HP.double()
    if b_HP is not None:
        log_gain = log_gain + b_HP.double() * torch.log(1 + positions_TP.double() / 16)[:, None]
    return as_pairs(x) * turns_TP[:, None] * log_gain.exp()


def as_pairs(x):
    return torch.complex(*x.double().unflatten(-1, (-1, HEAD_SIZE)).chunk(2, dim=-1))


def expected_rotation(stock, kind, gain, positions, q, k):
    return (
        rotate_pairs(stock, kind, positions, q, gain.query_a, gain.query_b),
        rotate_pairs(stock, kind, positions, k, gain.key_a, gain.key_b),
    )


def assert_rotated(found, expected):
    for mine, wanted in zip(found, expected, strict=True):
        assert (as_pairs(mine) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_rotates_by_the_formula(make_stock, gain_of, kind, config, method):
    stock, gain = make_stock(kind), random_gain(config)
    rotary = load(gain_of(stock, config), gain)
    inputs = random_inputs(kind)

    assert_rotated(rotate(rotary, *inputs, method), expected_rotation(stock, kind, gain, *inputs))


@pytest.mark.parametrize("kind", ["plain", "chunked", "interleaved"])
def test_what_inductor_makes_of_the_plain_form_is_the_same(make_stock, gain_of, kind):
    stock, gain = make_stock(kind), random_gain(PER_HEAD)
    rotary = load(gain_of(stock, PER_HEAD), gain)
    inputs = random_inputs(kind)

    rotary.terms.fill(inputs[0])
    found = torch.compile(rotary.forward_native)(*inputs)

    assert_rotated(found, expected_rotation(stock, kind, gain, *inputs))


def test_torch_compile_reads_the_terms_of_each_step(make_stock, gain_of):
    stock, gain = make_stock(), random_gain(PER_HEAD)
    rotary = load(gain_of(stock, PER_HEAD), gain)
    positions, q, k = random_inputs("chunked")
    compiled = torch.compile(lambda q, k: rotary(positions, q + 1, k + 1))

    for step in (positions, positions + 3):
        rotary.terms.fill(step)
        assert_rotated(compiled(q, k), expected_rotation(stock, "chunked", gain, step, q + 1, k + 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["plain", "chunked", "interleaved"])
def test_the_error_in_bfloat16_is_no_larger_than_stocks_own(make_stock, gain_of, kind, config, method):
    stock, gain = make_stock(kind, torch.bfloat16), random_gain(config)
    rotary = load(gain_of(stock, config), gain)
    positions, q, k = random_inputs(kind, torch.bfloat16)
    wanted = expected_rotation(stock, kind, gain, positions, q, k)
    stock_wanted = (rotate_pairs(stock, kind, positions, q), rotate_pairs(stock, kind, positions, k))

    found = rotate(rotary, positions, q, k, method)
    stock_found = stock(positions, q.clone(), k.clone())

    for mine, expected, its, stock_expected in zip(found, wanted, stock_found, stock_wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        # Each pair by its own length, which takes the gain out.
        error, stock_error = (
            (as_pairs(rotated) - right).abs() / right.abs()
            for rotated, right in ((mine, expected), (its, stock_expected))
        )
        assert error.mean() <= stock_error.mean()
        assert error.max() <= stock_error.max()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_parameters_are_the_stock_embedding(make_stock, gain_of, kind):
    stock = make_stock(kind)
    positions, q, k = random_inputs(kind)

    found = rotate(gain_of(stock, PER_HEAD), positions, q, k)

    for mine, its in zip(found, stock(positions, q.clone(), k.clone()), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=TOLERANCE * its.abs().max().item())


@pytest.mark.parametrize("kind", AXES)
def test_text_positions_are_the_same_on_every_axis(make_stock, gain_of, kind):
    rotary = load(gain_of(make_stock(kind), PER_HEAD), random_gain(PER_HEAD))
    positions, q, k = random_inputs(kind)

    for one, three in zip(
        rotate(rotary, positions[0], q, k), rotate(rotary, positions[0].expand(3, -1), q, k), strict=True
    ):
        torch.testing.assert_close(one, three, rtol=0, atol=TOLERANCE * three.abs().max().item())


def test_two_layers_over_one_stock_object_keep_their_own_gains(make_stock, gain_of):
    assert make_stock() is make_stock()
    stock, inputs = make_stock(), random_inputs("chunked")
    gains = [random_gain(PER_HEAD, seed) for seed in (0, 1)]
    layers = [load(gain_of(make_stock(), PER_HEAD), gain) for gain in gains]

    for layer, gain in zip(layers, gains, strict=True):
        assert_rotated(rotate(layer, *inputs), expected_rotation(stock, "chunked", gain, *inputs))


def test_a_layer_holds_its_gains_and_shares_the_rest(make_stock, gain_of):
    config = RopeGainConfig(granularity="layer_frequency", target="query_key")
    rotary = gain_of(make_stock(dtype=torch.bfloat16), config)

    assert {parameter.dtype for parameter in rotary.parameters()} == {torch.float32}
    assert {tensor.numel() for tensor in rotary.parameters()} == {NUM_PAIRS}
    assert list(rotary.buffers(recurse=False)) == []


def test_more_tokens_than_a_step_may_have_are_refused(make_stock, gain_of):
    rotary = gain_of(make_stock("plain"), PER_HEAD)

    with pytest.raises(RuntimeError, match="got a step of 20 tokens, expected at most 19"):
        rotary.terms.fill(torch.arange(TOKENS + 1))


def test_inputs_and_the_shared_cache_are_left_alone(make_stock, gain_of):
    stock = make_stock()
    rotary = load(gain_of(stock, PER_HEAD), random_gain(PER_HEAD))
    positions, q, k = random_inputs("chunked")
    before = [tensor.clone() for tensor in (positions, q, k, stock.cos_sin_cache)]

    rotate(rotary, positions, q, k)

    assert all(map(torch.equal, (positions, q, k, stock.cos_sin_cache), before))


@pytest.mark.parametrize(
    ("num_ranks", "key_heads_of_rank"),
    [
        pytest.param(2, [(0, 1), (1, 1)], id="2_processes"),
        # Four processes and two key-value heads: neighbours hold copies of one head.
        pytest.param(4, [(0, 1), (0, 1), (1, 1), (1, 1)], id="4_processes"),
    ],
)
def test_tensor_parallel_processes_take_their_own_heads(make_stock, gain_of, num_ranks, key_heads_of_rank):
    from rope_gain.vllm.check import check_rotation

    stock, gain = make_stock(), random_gain(PER_HEAD)
    positions, q, k = random_inputs("chunked")
    expected_q, expected_k = expected_rotation(stock, "chunked", gain, positions, q, k)
    held = NUM_HEADS // num_ranks

    for rank, key_heads in enumerate(key_heads_of_rank):
        rotary = load(gain_of(stock, PER_HEAD, heads=(rank * held, held), key_heads=key_heads), gain)
        q_heads, k_heads = (slice(first, first + number) for first, number in ((rank * held, held), key_heads))
        q_part, k_part = (slice(heads.start * HEAD_SIZE, heads.stop * HEAD_SIZE) for heads in (q_heads, k_heads))
        found = rotate(rotary, positions, q[:, q_part], k[:, k_part])
        assert_rotated(found, (expected_q[:, q_heads], expected_k[:, k_heads]))
        check_rotation("layer", rotary, stock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_check_at_load_passes(make_stock, gain_of, kind, config, dtype):
    from rope_gain.vllm.check import check_rotation

    stock = make_stock(kind, dtype)
    rotary = load(gain_of(stock, config), random_gain(config))

    assert check_rotation("layer", rotary, stock) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        # What a version of vLLM that goes past the module, or lays M-RoPE out in another way, would do.
        pytest.param("chunked", "query_a", torch.zeros(1, 1), id="gain_dropped"),
        pytest.param("chunked", "axes_P", torch.tensor([0] * NUM_PAIRS), id="one_axis"),
        pytest.param("interleaved", "axes_P", torch.tensor([0] * 6 + [1] * 5 + [2] * 5), id="chunked_axes"),
        pytest.param("plain", "frequencies_P", torch.ones(NUM_PAIRS), id="other_frequencies"),
    ],
)
def test_the_check_at_load_refuses_another_rotation(monkeypatch, make_stock, gain_of, kind, name, value, dtype):
    from rope_gain.vllm.check import check_rotation

    stock = make_stock(kind, dtype)
    rotary = load(gain_of(stock, PER_HEAD), random_gain(PER_HEAD))
    spoiled = load(gain_of(stock, PER_HEAD), random_gain(PER_HEAD))
    spoiled.terms = rotary.terms
    getattr(spoiled if hasattr(spoiled, name) else spoiled.terms, name).data = value
    monkeypatch.setattr(rotary, "_forward_method", spoiled.forward)

    with pytest.raises(RuntimeError, match=r"^decoder\.layers\.3: the rotated query differs .* expected at most"):
        check_rotation("decoder.layers.3", rotary, stock)


def test_a_tensor_of_another_shape_is_refused_with_both(make_stock, gain_of):
    parameter = gain_of(make_stock(), RopeGainConfig(granularity="layer_head_frequency")).query_a

    with pytest.raises(ValueError, match=r"query_a: got shape \[1, 16\], expected \[4, 16\]"):
        parameter.weight_loader(parameter, torch.zeros(1, 16))


def test_reading_the_cache_past_the_gain_is_an_error(make_stock, gain_of):
    with pytest.raises(RuntimeError, match=r"rotary_emb\.cos_sin_cache: this layer has a RoPE response gain"):
        gain_of(make_stock(), RopeGainConfig()).cos_sin_cache  # noqa: B018


def test_another_kind_of_rotary_embedding_is_refused_by_name(make_stock, gain_of, monkeypatch):
    monkeypatch.setitem(KINDS, "dynamic", {"rope_type": "dynamic", "factor": 2.0})

    with pytest.raises(ValueError, match=r"got DynamicNTKScalingRotaryEmbedding, expected one of RotaryEmbedding, M"):
        gain_of(make_stock("dynamic"), RopeGainConfig())


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"is_neox_style": False}, id="adjacent_pairs"), pytest.param({"rope_dim": 16}, id="half_the_head")],
)
def test_another_layout_of_pairs_is_refused(make_stock, gain_of, monkeypatch, settings):
    plain = {"rope_type": "default"} | {key: value for key, value in settings.items() if key == "rope_dim"}
    monkeypatch.setitem(KINDS, "plain", plain)
    make = functools.partial(make_stock, "plain", **{key: settings[key] for key in settings if key not in plain})

    with pytest.raises(ValueError, match="expected half-split pairs and the whole head rotated"):
        gain_of(make(), RopeGainConfig())


def test_registering_twice_is_harmless():
    from vllm import ModelRegistry

    from rope_gain.families import FAMILIES
    from rope_gain.vllm import register

    register()
    register()

    assert {family.laid_architecture for family in FAMILIES} <= set(ModelRegistry.get_supported_archs())


def test_rope_fusions_are_switched_off_and_others_are_not(in_vllm_config):  # noqa: ARG001 (for what it sets)
    from vllm.config import PassConfig

    from rope_gain.vllm.model import _switch_off_rope_fusions

    passes = PassConfig()
    # Set one by one: the configuration itself switches off what this machine has no kernel for.
    for name in ("enable_qk_norm_rope_fusion", "fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache", "fuse_norm_quant"):
        setattr(passes, name, True)

    _switch_off_rope_fusions(passes)

    assert not passes.enable_qk_norm_rope_fusion
    assert not passes.fuse_rope_kvcache
    assert not passes.fuse_qk_norm_rope_kvcache
    assert passes.fuse_norm_quant
    assert passes.rope_kvcache_fusion_max_token_num == 256


@pytest.mark.parametrize("version", ["0.30.9", "0.33.0", "1.0.0"])
def test_a_vllm_outside_the_range_is_refused_for_laid_architectures(monkeypatch, version):
    import vllm

    import rope_gain.vllm

    monkeypatch.setattr(vllm, "__version__", version)
    rope_gain.vllm.register()

    with pytest.raises(RuntimeError, match=rf"vllm: got version {version}, expected 0\.\d+ to 0\.\d+"):
        rope_gain.vllm.LAidQwen2ForCausalLM  # noqa: B018
