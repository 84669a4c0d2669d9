"""What all gained layers need of a step's positions, computed once a step.

Dimension letters: T tokens, P rotary pairs, D = 2P head size.
"""

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

from rope_gain.vllm.angles import Angles


class StepTerms(torch.nn.Module):
    """Cos, sin and log positions of the tokens of one step, float32, in buffers that never move.

    They are filled before the decoder runs and outside of what torch.compile sees, so that its graphs, and CUDA
    graphs, read them as they read the weights. In each layer they would cost what a short decode step has no time for:
    on a CPU the dispatch of a dozen small operators, or inductor's loops, which compute them again for each head.
    """

    frequencies_P: Tensor
    axes_P: Tensor | None
    rows_T2P: Tensor
    """Cos and sin, one after the other."""
    logs_TP: Tensor | None
    """log1p(m/L0), one for each pair with M-RoPE and one for all without; None for static gains."""

    def __init__(self, stock: RotaryEmbedding, *, reference_length: float | None, max_tokens: int) -> None:
        """Makes room for `max_tokens`; `reference_length` is L0, in positions, None for static gains.

        Raises:
            ValueError: the stock rotary embedding is of a kind that is not supported.
        """
        super().__init__()
        angles = Angles.of(stock)
        num_pairs = angles.frequencies_P.shape[0]
        self.magnitude = angles.magnitude
        self.reference_length = reference_length
        self.register_buffer("frequencies_P", angles.frequencies_P, persistent=False)
        self.register_buffer("axes_P", angles.axes_P, persistent=False)
        rows_T2P = angles.frequencies_P.new_zeros(max_tokens, 2 * num_pairs)
        self.register_buffer("rows_T2P", rows_T2P, persistent=False)
        columns = 1 if angles.axes_P is None else num_pairs
        logs_TP = None if reference_length is None else rows_T2P.new_zeros(max_tokens, columns)
        self.register_buffer("logs_TP", logs_TP, persistent=False)

    def fill(self, positions: Tensor) -> None:
        """Sets the terms of a step's tokens.

        Args:
            positions: [3, T], M-RoPE's time, height and width, or [T].

        Raises:
            RuntimeError: more tokens than there is room for.
        """
        num_tokens = positions.shape[-1]
        if num_tokens > len(self.rows_T2P):
            raise RuntimeError(
                f"rotary embedding: got a step of {num_tokens} tokens, expected at most {len(self.rows_T2P)}, "
                "max_num_batched_tokens at the start"
            )
        positions_TP = select_axes(positions, self.axes_P).float()
        angles_TP = positions_TP * self.frequencies_P
        cos_TP, sin_TP = self.rows_T2P[:num_tokens].chunk(2, dim=-1)
        cos_TP.copy_(angles_TP.cos())
        sin_TP.copy_(angles_TP.sin())
        if self.magnitude != 1:
            self.rows_T2P[:num_tokens] *= self.magnitude
        if self.logs_TP is not None and self.reference_length is not None:
            self.logs_TP[:num_tokens] = torch.log1p(positions_TP / self.reference_length)


def select_axes(positions: Tensor, axes_P: Tensor | None) -> Tensor:
    """Each pair's value out of [3, T] or [T]: [T, P], or [T, 1] where all pairs have the same."""
    if positions.ndim == 1 or axes_P is None:
        return positions.view(-1, 1)
    return positions.t().index_select(1, axes_P)
