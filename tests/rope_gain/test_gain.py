"""The pure functions against complex arithmetic in float64."""

import pytest
import torch

from rope_gain import RopeGain, RopeGainConfig
from rope_gain.gain import response_gain, rotate

BATCH, HEADS, TOKENS, PAIRS = 2, 3, 37, 8
REFERENCE_LENGTH = 16.0

# One tolerance a dtype: float32 rounds at 6e-8, and a value goes through about ten operations.
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}


def make_tensors(gain_heads, gain_pairs, tokens=TOKENS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_BHTD = torch.randn(BATCH, HEADS, tokens, 2 * PAIRS, generator=generator)
    a_HP = 0.5 * torch.randn(gain_heads, gain_pairs, generator=generator)
    b_HP = 0.3 * torch.randn(gain_heads, gain_pairs, generator=generator)
    positions_BTP = torch.randint(0, 4096, (BATCH, tokens, PAIRS), generator=generator).float()
    return x_BHTD, a_HP, b_HP, positions_BTP


def angles(positions_BTP):
    return positions_BTP.double() * 10_000.0 ** (-torch.arange(PAIRS).double() / PAIRS)


def cos_sin(positions_BTP):
    """As Hugging Face's rotary embeddings return them: both halves equal."""
    doubled = angles(positions_BTP).repeat(1, 1, 2)
    return doubled.cos().float(), doubled.sin().float()


def reference(x_BHTD, a_HP, b_HP, positions_BTP):
    """Pair i as the complex number x[i] + j·x[i+P], times g·exp(j·m·θ), in float64."""
    m_BTP = positions_BTP.double()
    log_gain = a_HP.double()[:, None, :]
    if b_HP is not None:
        log_gain = log_gain + b_HP.double()[:, None, :] * torch.log1p(m_BTP / REFERENCE_LENGTH)[:, None]
    turn = torch.polar(torch.ones_like(m_BTP), angles(positions_BTP))[:, None]
    pairs = torch.complex(*x_BHTD.double().chunk(2, dim=-1)) * turn * log_gain.exp()
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def apply(x_BHTD, a_HP, b_HP, positions_BTP):
    cos, sin = (table[:, None].to(x_BHTD.dtype) for table in cos_sin(positions_BTP))
    return rotate(x_BHTD, cos, sin, response_gain(a_HP, b_HP, positions_BTP, REFERENCE_LENGTH))


SHAPES = [
    pytest.param(1, 1, id="layer"),
    pytest.param(1, PAIRS, id="layer_frequency"),
    pytest.param(HEADS, PAIRS, id="layer_head_frequency"),
]


@pytest.mark.parametrize("static", [True, False], ids=["static", "log"])
@pytest.mark.parametrize(("gain_heads", "gain_pairs"), SHAPES)
def test_values_equal_complex_arithmetic(gain_heads, gain_pairs, static):
    x, a, b, positions = make_tensors(gain_heads, gain_pairs)
    b = None if static else b

    expected = reference(x, a, b, positions)

    # Rotated pairs reach about 20, so the absolute tolerance is relative to the largest.
    scale = expected.abs().max()
    torch.testing.assert_close(apply(x, a, b, positions).double() / scale, expected / scale, **TOLERANCE)


@pytest.mark.parametrize(("gain_heads", "gain_pairs"), SHAPES)
def test_gradients_equal_complex_arithmetic(gain_heads, gain_pairs):
    x, a, b, positions = make_tensors(gain_heads, gain_pairs)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def gradients(function, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, a, b)]
        return torch.autograd.grad((function(*leaves, positions) * direction).sum(), leaves)

    for found, expected in zip(gradients(apply, torch.float32), gradients(reference, torch.float64), strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found.double() / scale, expected / scale, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("gain_heads", "gain_pairs"), SHAPES)
def test_zero_parameters_are_the_stock_rotation_bit_for_bit(gain_heads, gain_pairs, dtype):
    x, a, b, positions = make_tensors(gain_heads, gain_pairs)
    cos, sin = (table[:, None].to(dtype) for table in cos_sin(positions))
    x = x.to(dtype)

    gained = apply(x, torch.zeros_like(a), torch.zeros_like(b), positions)

    assert torch.equal(gained, rotate(x, cos, sin))


@pytest.mark.parametrize(("gain_heads", "gain_pairs"), SHAPES)
def test_the_bfloat16_error_is_that_of_the_stock_rotation(gain_heads, gain_pairs):
    x, a, b, positions = make_tensors(gain_heads, gain_pairs, tokens=4096)
    x = x.bfloat16()

    def relative_error(a_HP, b_HP):
        """Root mean square over the pairs of error over length: a gain scales both."""
        expected = reference(x, a_HP, b_HP, positions)
        error = apply(x, a_HP, b_HP, positions).double() - expected
        square_error, square = (t.square().unflatten(-1, (2, PAIRS)).sum(-2) for t in (error, expected))
        return (square_error / square).mean().sqrt()

    stock = relative_error(torch.zeros_like(a), torch.zeros_like(b))

    # The same roundings, of which stock's last one falls a little more often just below a power of two.
    assert relative_error(a, b) <= stock


def test_a_module_starts_at_gain_one_and_leaves_out_what_is_not_learned():
    config = RopeGainConfig(granularity="layer_head_frequency", target="query", position="static")

    gain = RopeGain(config, num_heads=4, num_key_value_heads=2, head_dim=2 * PAIRS)
    query_gain, key_gain = gain(torch.arange(TOKENS * PAIRS).reshape(TOKENS, PAIRS))

    assert {name: tuple(p.shape) for name, p in gain.named_parameters()} == {"query_a": (4, PAIRS)}
    assert torch.equal(query_gain, torch.ones(4, 1, PAIRS))
    assert key_gain is None


def test_casting_a_model_leaves_its_gains_in_float32():
    gain = RopeGain(RopeGainConfig(), num_heads=4, num_key_value_heads=2, head_dim=2 * PAIRS)
    with torch.no_grad():
        gain.query_a.fill_(1 / 3)

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), gain).bfloat16()

    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(gain.query_a, torch.full((1, PAIRS), 1 / 3))
    assert gain.to("meta").query_a.is_meta


def test_a_module_gives_query_and_key_their_own_gain():
    config = RopeGainConfig(granularity="layer", target="query_key", position="log", reference_length=1)
    gain = RopeGain(config, num_heads=4, num_key_value_heads=2, head_dim=2)
    with torch.no_grad():
        gain.query_a.fill_(0.5)
        gain.key_b.fill_(2.0)

    query_gain, key_gain = gain(torch.tensor([[0.0], [3.0]]))

    torch.testing.assert_close(query_gain, torch.full((1, 2, 1), 0.5).exp())
    torch.testing.assert_close(key_gain, torch.tensor([[[1.0], [16.0]]]))  # (1 + 3)²
