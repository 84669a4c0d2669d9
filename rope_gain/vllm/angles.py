"""What vLLM's rotary embeddings rotate by, read off a stock object.

Dimension letters: P rotary pairs, D = 2P head size.
"""

import dataclasses
from typing import Self

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.linear_scaling_rope import LinearScalingRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.llama3_rope import Llama3RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding, apply_interleaved_rope
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding

SUPPORTED = (
    RotaryEmbedding,
    MRotaryEmbedding,
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)


@dataclasses.dataclass(frozen=True)
class Angles:
    """Pair i is rotated by m·frequencies[i], m being the position on axis axes[i]; cos and sin times magnitude."""

    frequencies_P: Tensor
    axes_P: Tensor | None
    magnitude: float

    @classmethod
    def of(cls, stock: RotaryEmbedding) -> Self:
        """The angles of a stock rotary embedding, which stays as it is.

        Raises:
            ValueError: its class or its layout of pairs is not supported.
        """
        if type(stock) not in SUPPORTED:
            supported = ", ".join(kind.__name__ for kind in SUPPORTED)
            raise ValueError(f"rotary embedding: got {type(stock).__name__}, expected one of {supported}")
        if not stock.is_neox_style or stock.rotary_dim != stock.head_size:
            raise ValueError(
                f"rotary embedding: got {stock}, expected half-split pairs and the whole head rotated "
                f"(is_neox_style=True, rotary_dim={stock.head_size})"
            )
        return cls(_frequencies(stock), _axes(stock), float(getattr(stock, "mscale", 1.0)))


def _frequencies(stock: RotaryEmbedding) -> Tensor:
    """Radians a position, float32, computed as for the stock cache: [P]."""
    is_yarn = isinstance(stock, YaRNScalingRotaryEmbedding | MRotaryEmbedding) and stock.scaling_factor is not None
    # vLLM's YaRN takes the scaling factor where the others take the base.
    frequencies_P: Tensor = stock._compute_inv_freq(stock.scaling_factor if is_yarn else stock.base)
    if type(stock) is LinearScalingRotaryEmbedding:
        [factor] = stock.scaling_factors
        frequencies_P = frequencies_P / factor
    return frequencies_P


def _axes(stock: RotaryEmbedding) -> Tensor | None:
    """The M-RoPE axis (0 time, 1 height, 2 width) of each pair, chosen as stock does: [P]; None without M-RoPE."""
    if type(stock) is not MRotaryEmbedding:
        return None
    sections = list(stock.mrope_section)
    if stock.mrope_interleaved:
        names_3P = torch.arange(3)[:, None].expand(3, stock.head_size // 2)
        axes_P: Tensor = apply_interleaved_rope(names_3P, sections)
        return axes_P
    return torch.arange(3).repeat_interleave(torch.tensor(sections))
