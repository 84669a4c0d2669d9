"""The rotary embedding of one decoder layer with a gain, as a vLLM custom operator.

Dimension letters: T tokens, H heads (1 where the heads share a gain), P rotary pairs, D = 2P head size.
"""

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform

from rope_gain.config import RopeGainConfig
from rope_gain.vllm.terms import StepTerms


class HeadRange(NamedTuple):
    """The heads that this process holds under tensor parallelism: `held` of `total`, from `first` on."""

    total: int
    first: int
    held: int


@CustomOp.register("laid_gained_rotary_embedding")
class GainedRotaryEmbedding(CustomOp):
    """Multiplies query and key by this layer's gain and rotates them, in float32 with one cast at the end.

    Cos and sin come from `terms`, which the layers share and the model fills before each step. The gains are named as
    in `rope_gain.gain.RopeGain`, float32 whatever the dtype of the model.
    """

    def __init__(
        self,
        terms: StepTerms,
        config: RopeGainConfig,
        *,
        head_size: int,
        query_heads: HeadRange,
        key_heads: HeadRange,
    ) -> None:
        # Also where torch.compile's default turns custom operators off: `forward_cpu` looks for itself.
        super().__init__(enforce_enable=current_platform.is_cpu())
        self.terms = terms
        self.head_size = head_size
        self.num_heads = {"query": query_heads.held, "key": key_heads.held}
        stored_shapes = config.gain_shapes(
            num_heads=query_heads.total, num_key_value_heads=key_heads.total, head_dim=head_size
        )
        for name in ("query_a", "query_b", "key_a", "key_b"):
            heads = query_heads if name.startswith("query") else key_heads
            shape = stored_shapes.get(name)
            self.register_parameter(name, None if shape is None else _make_parameter(name, shape, heads))

    @property
    def cos_sin_cache(self) -> NoReturn:
        """Refuses: fused kernels that take the cache in place of calling this module would drop the gain."""
        raise RuntimeError(
            "rotary_emb.cos_sin_cache: this layer has a RoPE response gain, which a kernel that reads the "
            "cache itself would drop; switch that kernel or fusion off"
        )

    def forward_native(
        self,
        positions: Tensor,  # noqa: ARG002 (stock's signature; `terms` were made from them)
        query: Tensor,
        key: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Plain PyTorch, the truth for the others; what torch.compile sees.

        Args:
            positions: those that `terms` were filled with.
            query: [T, query heads · D]; key: [T, key-value heads · D].
        """
        rows_T2P, gains = self._terms_of(len(query))
        query_gain, key_gain = gains
        return (
            _rotated(query, rows_T2P, query_gain, self.head_size),
            _rotated(key, rows_T2P, key_gain, self.head_size),
        )

    def forward_cpu(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """By vLLM's own kernel; under torch.compile by inductor's loops, which take the neighbours in."""
        if torch.compiler.is_compiling():
            return self.forward_native(positions, query, key)
        rows_T2P, (query_gain, key_gain) = self._terms_of(len(query))
        query_32 = _gained(query, query_gain, self.head_size)
        key_32 = _gained(key, key_gain, self.head_size)
        # The kernel takes a row of cos and sin for each token, and works in place.
        rows = torch.arange(rows_T2P.shape[0], device=rows_T2P.device)
        ops.rotary_embedding(rows, query_32, key_32, self.head_size, rows_T2P, True)
        return query_32.to(query.dtype), key_32.to(key.dtype)

    def forward_cuda(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel has the same interface on CUDA and ROCm."""
        return self.forward_cpu(positions, query, key)

    def _terms_of(self, num_tokens: int) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        """Cos and sin [T, 2P], and the gains of query and key, [T or 1, H, P or 1], None where there is none."""
        logs_TP = self.terms.logs_TP
        logs_T1P = None if logs_TP is None else logs_TP[:num_tokens, None]
        gains = _gain(self.query_a, self.query_b, logs_T1P), _gain(self.key_a, self.key_b, logs_T1P)
        return self.terms.rows_T2P[:num_tokens], gains


def _gain(a_HP: Tensor | None, b_HP: Tensor | None, logs_T1P: Tensor | None) -> Tensor | None:
    if a_HP is None:
        return None
    if b_HP is None or logs_T1P is None:
        return a_HP.exp()[None]
    return torch.exp(a_HP + b_HP * logs_T1P)


def _rotated(x: Tensor, rows_T2P: Tensor, gain: Tensor | None, head_size: int) -> Tensor:
    """x times its gain, rotated: [T, heads · D], in x's dtype."""
    cos, sin = (half[:, None] if gain is None else half[:, None] * gain for half in rows_T2P.chunk(2, dim=-1))
    first, second = x.view(x.shape[0], -1, head_size).float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(1).to(x.dtype)


def _gained(x: Tensor, gain: Tensor | None, head_size: int) -> Tensor:
    """A float32 copy of x, times its gain if it has one: [T, heads · D], contiguous."""
    if gain is None:
        return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    x_TH2P = x.view(x.shape[0], -1, 2, head_size // 2)
    return (x_TH2P * gain[:, :, None]).view(x.shape)


def _make_parameter(name: str, stored_shape: tuple[int, int], heads: HeadRange) -> torch.nn.Parameter:
    """This process's part of a gain tensor, which vLLM's loaders fill through its `weight_loader`."""
    per_head = stored_shape[0] == heads.total
    mine = slice(heads.first, heads.first + heads.held) if per_head else slice(None)
    shape = (heads.held if per_head else 1, stored_shape[1])
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=False)

    def load(parameter: torch.nn.Parameter, stored: Tensor) -> None:
        if stored.shape != stored_shape:
            raise ValueError(
                f"checkpoint: {name}: got shape {list(stored.shape)}, expected {list(stored_shape)} "
                "by the model's sizes and its rope_gain configuration"
            )
        parameter.data.copy_(stored[mine])

    set_weight_attrs(parameter, {"weight_loader": load})
    return parameter
