"""The rotary embedding of one decoder layer with a gain, as a vLLM custom operator.

Dimension letters: T tokens, H heads (1 where the heads share a gain), P rotary pairs, D = 2P head size.
"""

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from vllm import _custom_ops as ops
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import direct_register_custom_op

from rope_gain.config import RopeGainConfig
from rope_gain.gain import response_gain, rotate


class HeadRange(NamedTuple):
    """The heads that this process holds under tensor parallelism: `held` of `total`, from `first` on."""

    total: int
    first: int
    held: int


@CustomOp.register("laid_gained_rotary_embedding")
class GainedRotaryEmbedding(CustomOp):
    """Multiplies the stock rotation by this layer's gain in float32, and casts once.

    The cos/sin cache stays the stock object's, which the layers share; only the gains are this layer's own.
    They are named as in `rope_gain.gain.RopeGain` and are float32 whatever the dtype of the model.
    """

    def __init__(
        self,
        stock: MRotaryEmbedding,
        config: RopeGainConfig,
        *,
        query_heads: HeadRange,
        key_heads: HeadRange,
    ) -> None:
        # Also where torch.compile's default turns custom operators off: with the gain inlined, every head
        # would compute it again.
        super().__init__(enforce_enable=True)
        _check_supported(stock)
        self.stock = stock
        self.head_size = stock.head_size
        self.sections: tuple[int, ...] = tuple(stock.mrope_section)
        self.reference_length = config.reference_length
        stored_shapes = config.gain_shapes(
            num_heads=query_heads.total, num_key_value_heads=key_heads.total, head_dim=self.head_size
        )
        for name, stored_shape in stored_shapes.items():
            heads = query_heads if name.startswith("query") else key_heads
            self.register_parameter(name, _make_parameter(name, stored_shape, heads))

    @property
    def cos_sin_cache(self) -> NoReturn:
        """Refuses: fused kernels that take the cache in place of calling this module would drop the gain."""
        raise RuntimeError(
            "rotary_emb.cos_sin_cache: this layer has a RoPE response gain, which a kernel that reads the "
            "cache itself would drop; switch that kernel or fusion off"
        )

    def forward_native(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Plain PyTorch, the truth for the others.

        Args:
            positions: [3, T], M-RoPE's time, height and width, or [T] for text.
            query: [T, query heads · D]; key: [T, key-value heads · D].
        """
        query_rows, key_rows = self._rows(positions, query.dtype)
        return self._rotate_native(query, query_rows), self._rotate_native(key, key_rows)

    def forward_cpu(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """By vLLM's own kernel; the gains are all that torch.compile sees."""
        query_rows, key_rows = self._rows(positions, query.dtype)
        return (
            torch.ops.vllm.laid_rotate_by_rows(query, query_rows, self.head_size),
            torch.ops.vllm.laid_rotate_by_rows(key, key_rows, self.head_size),
        )

    def forward_cuda(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel has the same interface on CUDA and ROCm."""
        return self.forward_cpu(positions, query, key)

    def _rows(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The query's and the key's gained cos and sin, one after the other in the last axis: [T, H, 2P]."""
        axes_3T = positions.expand(3, -1)
        rotation_T2P = self._rotation(axes_3T)
        positions_TP = torch.cat(
            [axis_T[:, None].expand(-1, size) for axis_T, size in zip(axes_3T, self.sections, strict=True)],
            dim=-1,
        )
        query_rows = self._scale(rotation_T2P, positions_TP, "query")
        key_rows = self._scale(rotation_T2P, positions_TP, "key")
        return query_rows.to(dtype), key_rows.to(dtype)

    def _rotation(self, axes_3T: Tensor) -> Tensor:
        """Stock cos and sin in float32, each pair's from its own M-RoPE axis: [T, 2P]."""
        halves = self.stock.cos_sin_cache[axes_3T].float().chunk(2, dim=-1)
        return torch.cat(
            [part[axis] for half in halves for axis, part in enumerate(half.split(self.sections, dim=-1))],
            dim=-1,
        )

    def _scale(self, rotation_T2P: Tensor, positions_TP: Tensor, side: str) -> Tensor:
        a_HP = getattr(self, f"{side}_a", None)
        if a_HP is None:
            return rotation_T2P[:, None]
        b_HP = getattr(self, f"{side}_b", None)
        gain_THP = response_gain(a_HP, b_HP, positions_TP, self.reference_length).transpose(0, 1)
        return torch.cat([gain_THP * half[:, None] for half in rotation_T2P.chunk(2, dim=-1)], dim=-1)

    def _rotate_native(self, x: Tensor, rows_TH2P: Tensor) -> Tensor:
        cos, sin = (torch.cat((half, half), dim=-1) for half in rows_TH2P.chunk(2, dim=-1))
        return rotate(x.view(*x.shape[:-1], -1, self.head_size), cos, sin).flatten(-2)


def rotate_by_rows(x: Tensor, rows: Tensor, head_size: int) -> Tensor:
    """Rotates with vLLM's `rotary_embedding` kernel, which takes one row of cos and sin a token.

    Where the gain differs between heads, each head is a token of its own. The copy is what torch.compile needs:
    the kernel works in place, and vLLM's FixFunctionalizationPass assumes that one call has both query and key.

    Args:
        x: [T, heads · D], half-split pairs.
        rows: cos and sin, one after the other, [T, heads or 1, 2P], in x's dtype.
        head_size: D.

    Returns:
        The rotated x, a new tensor.
    """
    rotated = x.clone(memory_format=torch.contiguous_format)
    cache = rows.flatten(0, 1)
    tokens = torch.arange(cache.shape[0], device=x.device)
    ops.rotary_embedding(tokens, rotated.view(cache.shape[0], -1), None, head_size, cache, True)
    return rotated


def _rotate_by_rows_fake(x: Tensor, rows: Tensor, head_size: int) -> Tensor:  # noqa: ARG001 (same arguments)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


direct_register_custom_op(op_name="laid_rotate_by_rows", op_func=rotate_by_rows, fake_impl=_rotate_by_rows_fake)


def _check_supported(stock: nn.Module) -> None:
    """ValueError for a rotary embedding whose rotation this module does not know."""
    supported = (
        isinstance(stock, MRotaryEmbedding)
        and stock.mrope_section
        and not stock.mrope_interleaved
        and stock.is_neox_style
        and stock.rotary_dim == stock.head_size
    )
    if not supported:
        raise ValueError(
            f"rotary embedding: got {stock}, expected vLLM's MRotaryEmbedding with chunked sections, "
            "half-split pairs and the whole head rotated"
        )


def _make_parameter(name: str, stored_shape: tuple[int, int], heads: HeadRange) -> nn.Parameter:
    """This process's part of a gain tensor, which vLLM's loaders fill through its `weight_loader`."""
    per_head = stored_shape[0] == heads.total
    mine = slice(heads.first, heads.first + heads.held) if per_head else slice(None)
    shape = (heads.held if per_head else 1, stored_shape[1])
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=False)

    def load(parameter: nn.Parameter, stored: Tensor) -> None:
        if stored.shape != stored_shape:
            raise ValueError(
                f"checkpoint: {name}: got shape {list(stored.shape)}, expected {list(stored_shape)} "
                "by the model's sizes and its rope_gain configuration"
            )
        parameter.data.copy_(stored[mine])

    set_weight_attrs(parameter, {"weight_loader": load})
    return parameter
