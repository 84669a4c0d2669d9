"""The rotary embedding of one decoder layer with a gain, as a vLLM custom operator.

Dimension letters: T tokens, H heads (1 where the heads share a gain), P rotary pairs, D = 2P head size.
"""

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from rope_gain.config import RopeGainConfig
from rope_gain.vllm.angles import Angles


class HeadRange(NamedTuple):
    """The heads that this process holds under tensor parallelism: `held` of `total`, from `first` on."""

    total: int
    first: int
    held: int


@CustomOp.register("laid_gained_rotary_embedding")
class GainedRotaryEmbedding(CustomOp):
    """Multiplies query and key by this layer's gain and rotates them, in float32 with one cast at the end.

    Cos and sin are computed from the frequencies: a table of them in float32 would be twice the size of the stock
    one. The gains are named as in `rope_gain.gain.RopeGain`, float32 whatever the dtype of the model.
    """

    frequencies_P: Tensor
    axes_P: Tensor | None

    def __init__(
        self,
        stock: RotaryEmbedding,
        config: RopeGainConfig,
        *,
        query_heads: HeadRange,
        key_heads: HeadRange,
    ) -> None:
        # On a CPU also where torch.compile's default turns custom operators off: see `laid_rotation_terms`. Beside
        # a GPU's memory, what inductor computes again is free.
        super().__init__(enforce_enable=current_platform.is_cpu())
        angles = Angles.of(stock)
        self.head_size: int = stock.head_size
        self.num_heads = {"query": query_heads.held, "key": key_heads.held}
        self.magnitude = angles.magnitude
        self.reference_length = config.reference_length
        self.register_buffer("frequencies_P", angles.frequencies_P, persistent=False)
        self.register_buffer("axes_P", angles.axes_P, persistent=False)
        stored_shapes = config.gain_shapes(
            num_heads=query_heads.total, num_key_value_heads=key_heads.total, head_dim=self.head_size
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

    def forward_native(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Plain PyTorch, the truth for the others; what torch.compile sees on a GPU.

        Args:
            positions: [3, T], M-RoPE's time, height and width, or [T] for text.
            query: [T, query heads · D]; key: [T, key-value heads · D].
        """
        return self._rotate(query, key, rotation_terms(positions, *self._parameters_of_terms()))

    def forward_cpu(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """By vLLM's own kernel; under torch.compile by inductor's loops, without what the heads share."""
        if torch.compiler.is_compiling():
            return self._rotate(query, key, torch.ops.vllm.laid_rotation_terms(positions, *self._parameters_of_terms()))
        rows_T2P, *gains = rotation_terms(positions, *self._parameters_of_terms())
        query_32 = _gained(query, gains[0], self.head_size)
        key_32 = _gained(key, gains[1] if len(gains) > 1 else None, self.head_size)
        # The kernel takes a row of cos and sin for each token, and works in place.
        rows = torch.arange(rows_T2P.shape[0], device=rows_T2P.device)
        ops.rotary_embedding(rows, query_32, key_32, self.head_size, rows_T2P, True)
        return query_32.to(query.dtype), key_32.to(key.dtype)

    def forward_cuda(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel has the same interface on CUDA and ROCm."""
        return self.forward_cpu(positions, query, key)

    def _parameters_of_terms(self) -> tuple[Any, ...]:
        return (
            self.frequencies_P,
            self.axes_P,
            self.query_a,
            self.query_b,
            self.key_a,
            self.key_b,
            self.reference_length,
            self.magnitude,
        )

    def _rotate(self, query: Tensor, key: Tensor, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        rows_T2P, *gains = terms
        query_gain, key_gain = gains if len(gains) > 1 else (gains[0], None)
        return _rotated(query, rows_T2P, query_gain, self.head_size), _rotated(key, rows_T2P, key_gain, self.head_size)


def rotation_terms(
    positions: Tensor,
    frequencies_P: Tensor,
    axes_P: Tensor | None,
    query_a: Tensor,
    query_b: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,
    reference_length: float,
    magnitude: float,
) -> list[Tensor]:
    """What the heads share: cos, sin and the gain of each token, float32.

    Args:
        positions: [3, T] or [T].
        frequencies_P: float32, radians a position.
        axes_P: the M-RoPE axis of each pair; None where positions have one axis.
        query_a, query_b, key_a, key_b: float32 [H, P or 1]; None leaves that term out.
        reference_length: L0, in positions.
        magnitude: factor of cos and sin, YaRN's; 1 for others.

    Returns:
        cos and sin, one after the other in the last axis, [T, 2P]; the query's gain, [T or 1, H, P or 1]; and the
        key's, if it has one.
    """
    angles_TP = select_axes(positions, axes_P) * frequencies_P
    rows_T2P = torch.cat((angles_TP.cos(), angles_TP.sin()), dim=-1)
    if magnitude != 1:
        rows_T2P = rows_T2P * magnitude
    if query_b is None:
        return [rows_T2P, *(a_HP.exp()[None] for a_HP in (query_a, key_a) if a_HP is not None)]
    log_T1P = select_axes(torch.log1p(positions.float() / reference_length), axes_P)[:, None]
    gains = [
        torch.addcmul(a_HP, b_HP, log_T1P).exp_()
        for a_HP, b_HP in ((query_a, query_b), (key_a, key_b))
        if a_HP is not None and b_HP is not None
    ]
    return [rows_T2P, *gains]


def _rotation_terms_fake(
    positions: Tensor,
    frequencies_P: Tensor,
    axes_P: Tensor | None,  # noqa: ARG001 (the operator's own arguments)
    query_a: Tensor,
    query_b: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,  # noqa: ARG001
    reference_length: float,  # noqa: ARG001
    magnitude: float,  # noqa: ARG001
) -> list[Tensor]:
    num_tokens = positions.shape[-1]
    rows_T2P = frequencies_P.new_empty(num_tokens, 2 * frequencies_P.shape[0])
    gains = [
        a_HP.new_empty(1 if query_b is None else num_tokens, *a_HP.shape)
        for a_HP in (query_a, key_a)
        if a_HP is not None
    ]
    return [rows_T2P, *gains]


# Hidden from torch.compile, whose loops would compute cos, sin and the gain again for each head.
direct_register_custom_op(op_name="laid_rotation_terms", op_func=rotation_terms, fake_impl=_rotation_terms_fake)


def select_axes(positions: Tensor, axes_P: Tensor | None) -> Tensor:
    """Each pair's value out of [3, T] or [T]: [T, P], or [T, 1] where all pairs have the same."""
    if positions.ndim == 1 or axes_P is None:
        return positions.view(-1, 1)
    # By columns, so that the result is contiguous: the loops after it are ten times slower over a transposed one.
    return positions.t().index_select(1, axes_P)


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
