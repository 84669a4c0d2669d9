"""Compares a layer's rotation with the formula before anything is served.

Dimension letters: A position axes, T tokens, H heads, P rotary pairs, D = 2P head size.
"""

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.model_loader.utils import device_loading_context

from rope_gain.vllm.rotary import GainedRotaryEmbedding

NUM_TOKENS = 8
# Of the largest value, by the dtype of the model, in which the stock cache is rounded too.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def check_rotation(layer: str, rotary: GainedRotaryEmbedding, stock: RotaryEmbedding) -> float:
    """Rotates random queries and keys through the module as dispatched, and by the formula in float64.

    The positions reach to the end of the stock cache and, with M-RoPE, differ between the axes. The heads are
    this process's own.

    Args:
        layer: the layer's name, for the error.
        rotary: its rotary embedding, with the gains loaded.
        stock: the one that it stands in for.

    Returns:
        The largest difference, as a share of the largest value.

    Raises:
        RuntimeError: the difference exceeds the dtype's tolerance.
    """
    random = torch.Generator().manual_seed(0)
    device = rotary.terms.rows_T2P.device
    positions_AT = torch.randint(0, len(stock.cos_sin_cache), (_num_axes(stock), NUM_TOKENS), generator=random)
    x_TD = {
        side: torch.randn(NUM_TOKENS, heads * rotary.head_size, generator=random).to(stock.dtype)
        for side, heads in rotary.num_heads.items()
    }
    # vLLM may keep weights off the device, and brings them there for a forward pass.
    with device_loading_context(rotary, device), torch.inference_mode():
        positions = positions_AT.squeeze(0).to(device)
        rotary.terms.fill(positions)
        found = rotary(positions, x_TD["query"].to(device), x_TD["key"].to(device))
    return max(
        _compare(layer, side, rotated, _formula(x_TD[side], positions_AT, rotary, side, stock), stock.dtype)
        for side, rotated in zip(x_TD, found, strict=True)
    )


def _compare(layer: str, side: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    difference = ((found.cpu().double() - expected).abs().max() / expected.abs().max()).item()
    # NaN is no small difference.
    if not difference <= TOLERANCES[dtype]:
        raise RuntimeError(
            f"{layer}: the rotated {side} differs from the RoPE response gain's formula by {difference:.1e} of its "
            f"largest value, expected at most {TOLERANCES[dtype]:.1e} in {dtype}; the checkpoint is not served, "
            "since this installation of vLLM computes something else"
        )
    return difference


def _formula(
    x_TD: Tensor, positions_AT: Tensor, rotary: GainedRotaryEmbedding, side: str, stock: RotaryEmbedding
) -> Tensor:
    """Pair i as the complex number x[i] + j·x[i+P], times exp(a + b·log1p(m/L0)) and the stock turn at m."""
    num_pairs = stock.head_size // 2
    m_TP = torch.stack([positions_AT[_axis(stock, pair)] for pair in range(num_pairs)], dim=-1)
    pairs = torch.arange(num_pairs)
    cache = stock.cos_sin_cache
    cos_TP, sin_TP = (
        cache[m_TP.to(cache.device), (pairs + start).to(cache.device)].cpu().double() for start in (0, num_pairs)
    )
    log_gain = torch.zeros(1, 1, 1, dtype=torch.float64)
    if (a_HP := getattr(rotary, f"{side}_a")) is not None:
        log_gain = log_gain + a_HP.cpu().double()
    length = rotary.terms.reference_length
    if (b_HP := getattr(rotary, f"{side}_b")) is not None and length is not None:
        log_gain = log_gain + b_HP.cpu().double() * (1 + m_TP.double() / length).log()[:, None]
    real, imaginary = x_TD.double().view(len(x_TD), -1, stock.head_size).chunk(2, dim=-1)
    rotated = torch.complex(real, imaginary) * torch.complex(cos_TP, sin_TP)[:, None] * log_gain.exp()
    return torch.cat((rotated.real, rotated.imag), dim=-1).flatten(1)


def _num_axes(stock: RotaryEmbedding) -> int:
    return len(getattr(stock, "mrope_section", [1]))


def _axis(stock: RotaryEmbedding, pair: int) -> int:
    """The M-RoPE axis of a pair: sections one after the other, or height and width every third pair."""
    sections = getattr(stock, "mrope_section", [stock.head_size // 2])
    if getattr(stock, "mrope_interleaved", False):
        return pair % 3 if pair < 3 * sections[pair % 3] else 0
    return next(axis for axis in range(len(sections)) if pair < sum(sections[: axis + 1]))
