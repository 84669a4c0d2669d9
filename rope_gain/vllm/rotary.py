"""The rotary embedding of one decoder layer with a gain, as a vLLM custom operator.

Dimension letters: T tokens, H heads (1 where the heads share a gain), P rotary pairs, D = 2P head size.
"""

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from rope_gain.config import RopeGainConfig
from rope_gain.gain import response_gain, rotate
from rope_gain.vllm.angles import Angles


class HeadRange(NamedTuple):
    """The heads that this process holds under tensor parallelism: `held` of `total`, from `first` on."""

    total: int
    first: int
    held: int


@CustomOp.register("laid_gained_rotary_embedding")
class GainedRotaryEmbedding(CustomOp):
    """Multiplies query and key by this layer's gain and rotates them, in float32 with one cast at the end.

    A gain is the same for both members of a pair, so it may come before the rotation, where it costs no pass
    over memory of its own. Cos and sin are computed from the frequencies: a float32 table of them would be twice
    the stock one. The gains are named as in `rope_gain.gain.RopeGain`, float32 whatever the dtype of the model.
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
        # On a CPU also where torch.compile's default turns custom operators off: inductor's loops would compute
        # the gain, cos and sin once more for each head. A GPU's memory is so much slower that they are free.
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
        positions_TP = select_axes(positions.float(), self.axes_P)
        angles_TP = positions_TP * self.frequencies_P
        rotation = [(part * self.magnitude).repeat(1, 2)[:, None] for part in (angles_TP.cos(), angles_TP.sin())]
        rotated = []
        for x, a_HP, b_HP in ((query, self.query_a, self.query_b), (key, self.key_a, self.key_b)):
            x_THD = x.view(x.shape[0], -1, self.head_size).float()
            if a_HP is not None:
                gain_THP = response_gain(a_HP, b_HP, positions_TP, self.reference_length).transpose(0, 1)
                x_THD = x_THD * gain_THP.repeat(1, 1, 2 if gain_THP.shape[-1] > 1 else 1)
            rotated.append(rotate(x_THD, *rotation).flatten(1).to(x.dtype))
        return rotated[0], rotated[1]

    def forward_cpu(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """By vLLM's own kernel, hidden from torch.compile."""
        rotated: tuple[Tensor, Tensor] = torch.ops.vllm.laid_gain_and_rotate(
            positions,
            query,
            key,
            self.frequencies_P,
            self.axes_P,
            self.query_a,
            self.query_b,
            self.key_a,
            self.key_b,
            self.reference_length,
            self.magnitude,
            self.head_size,
        )
        return rotated

    def forward_cuda(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel has the same interface on CUDA and ROCm."""
        return self.forward_cpu(positions, query, key)


def gain_and_rotate(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    frequencies_P: Tensor,
    axes_P: Tensor | None,
    query_a: Tensor,
    query_b: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,
    reference_length: float,
    magnitude: float,
    head_size: int,
) -> tuple[Tensor, Tensor]:
    """Rotates with vLLM's `rotary_embedding` kernel, which takes one row of cos and sin a token.

    The kernel works in place, on the float32 copies that the gain's multiplication makes. An operator that
    changed its arguments would be wrong under torch.compile: vLLM's FixFunctionalizationPass knows stock's only.

    Args:
        positions: [3, T] or [T].
        query: [T, query heads · D], half-split pairs.
        key: [T, key-value heads · D].
        frequencies_P: float32, radians a position.
        axes_P: the M-RoPE axis of each pair; None where positions have one axis.
        query_a, query_b, key_a, key_b: float32 [H, P or 1]; None leaves that term out.
        reference_length: L0, in positions.
        magnitude: factor of cos and sin, YaRN's; 1 for others.
        head_size: D.

    Returns:
        The rotated query and key, new tensors, in their own dtypes.
    """
    axes = positions.float()
    angles_TP = select_axes(axes, axes_P) * frequencies_P
    rows_T2P = torch.cat((angles_TP.cos(), angles_TP.sin()), dim=-1)
    if magnitude != 1:
        rows_T2P.mul_(magnitude)
    needs_log = query_b is not None or key_b is not None
    log_TP = select_axes(torch.log1p(axes / reference_length), axes_P) if needs_log else None
    query_32 = _gained(query, query_a, query_b, log_TP, head_size)
    key_32 = _gained(key, key_a, key_b, log_TP, head_size)
    rows = torch.arange(rows_T2P.shape[0], device=rows_T2P.device)
    ops.rotary_embedding(rows, query_32, key_32, head_size, rows_T2P, True)
    return query_32.to(query.dtype), key_32.to(key.dtype)


def _gain_and_rotate_fake(  # the operator's own arguments, of which shapes and dtypes are all that matters
    positions: Tensor,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    frequencies_P: Tensor,  # noqa: ARG001
    axes_P: Tensor | None,  # noqa: ARG001
    query_a: Tensor,  # noqa: ARG001
    query_b: Tensor | None,  # noqa: ARG001
    key_a: Tensor | None,  # noqa: ARG001
    key_b: Tensor | None,  # noqa: ARG001
    reference_length: float,  # noqa: ARG001
    magnitude: float,  # noqa: ARG001
    head_size: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


direct_register_custom_op(op_name="laid_gain_and_rotate", op_func=gain_and_rotate, fake_impl=_gain_and_rotate_fake)


def select_axes(positions: Tensor, axes_P: Tensor | None) -> Tensor:
    """Each pair's value out of [3, T] or [T]: [T, P], or [T, 1] where all pairs have the same."""
    if positions.ndim == 1 or axes_P is None:
        return positions.view(-1, 1)
    # By columns, so that the result is contiguous: the loops after it are ten times slower over a transposed one.
    return positions.t().index_select(1, axes_P)


def _gained(x: Tensor, a_HP: Tensor | None, b_HP: Tensor | None, log_TP: Tensor | None, head_size: int) -> Tensor:
    """A float32 copy of x, times its gain if it has one: [T, heads · D], contiguous."""
    if a_HP is None:
        return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    log_gain = a_HP if b_HP is None or log_TP is None else torch.addcmul(a_HP, b_HP, log_TP[:, None])
    x_TH2P = x.view(x.shape[0], -1, 2, head_size // 2)
    return (x_TH2P * log_gain.exp()[..., None, :]).view(x.shape)


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
