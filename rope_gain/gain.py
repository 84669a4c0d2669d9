"""The response gain: pure functions, and the module that owns one layer's parameters.

Dimension letters: B batch, H heads, T tokens, P rotary pairs, D = 2P head size.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from rope_gain.config import RopeGainConfig


def response_gain(a_HP: Tensor, b_HP: Tensor | None, positions_TP: Tensor, reference_length: float) -> Tensor:
    """The positive gain g = exp(a + b·log1p(m/L0)) of every head, token and rotary pair.

    Args:
        a_HP: log gain at position 0, [H or 1, P or 1].
        b_HP: slope of the log gain, same shape; None where the gain is static.
        positions_TP: m, [..., T, P], at or above 0: the position on the M-RoPE axis that the pair belongs to.
        reference_length: L0, in positions.

    Returns:
        float32 [..., H or 1, T or 1, P or 1], which broadcasts against [..., H, T, P].

    Source: LAid (arXiv 2512.21576), learnable RoPE response gain; the formula is this project's own.
    """
    log_gain = a_HP.float()[:, None, :]
    if b_HP is not None:
        log_position = torch.log1p(positions_TP.float() / reference_length)
        log_gain = log_gain + b_HP.float()[:, None, :] * log_position[..., None, :, :]
    return torch.exp(log_gain)


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None = None) -> Tensor:
    """Rotates pair i, which is dimensions i and i+P (the half-split, "neox" layout), and multiplies it by its gain.

    The operations and their order are those of transformers' `apply_rotary_pos_emb`, in x's dtype, up to the sum of
    the two products. That sum and the gain are float32, and their product is cast once. So a gain of 1 gives stock's
    bits, and any other gain stock's relative error: the roundings are the same ones.

    Args:
        x_BHTD: query or key, [B, H, T, D].
        cos: as Hugging Face's rotary embeddings return it, both halves equal, [B, 1, T, D], in x's dtype.
        sin: likewise.
        gain: float32 [B or nothing, H or 1, T or 1, P or 1], from `response_gain`; None is a gain of 1.
    """
    first, second = x_BHTD.chunk(2, dim=-1)
    stretched, turned = x_BHTD * cos, torch.cat((-second, first), dim=-1) * sin
    if gain is None:
        return stretched + turned
    both_halves = torch.cat((gain, gain), dim=-1) if gain.shape[-1] > 1 else gain
    return ((stretched.float() + turned.float()) * both_halves).to(x_BHTD.dtype)


class RopeGain(nn.Module):
    """One decoder layer's gain parameters: `query_a`, `query_b`, `key_a`, `key_b`, float32, all 0 at first.

    A parameter that the configuration leaves out (`*_b` of static gains, `key_*` of query gains) is None.
    """

    query_a: nn.Parameter
    query_b: nn.Parameter | None
    key_a: nn.Parameter | None
    key_b: nn.Parameter | None

    def __init__(
        self,
        config: RopeGainConfig,
        *,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        shapes = config.gain_shapes(num_heads=num_heads, num_key_value_heads=num_key_value_heads, head_dim=head_dim)
        for name in ("query_a", "query_b", "key_a", "key_b"):
            shape = shapes.get(name)
            zeros = None if shape is None else torch.zeros(shape, dtype=torch.float32, device=device)
            self.register_parameter(name, None if zeros is None else nn.Parameter(zeros))

    def forward(self, positions_TP: Tensor) -> tuple[Tensor, Tensor | None]:
        """The query's gain and the key's, None where only the query has one; shapes as in `response_gain`."""
        length = self.config.reference_length
        query_gain = response_gain(self.query_a, self.query_b, positions_TP, length)
        if self.key_a is None:
            return query_gain, None
        return query_gain, response_gain(self.key_a, self.key_b, positions_TP, length)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows the model from device to device and not into another dtype: bfloat16 would swallow small updates."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == torch.float32 else tensor.to(moved.device)

        super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """The configuration, for `print(model)`."""
        return str(self.config)
