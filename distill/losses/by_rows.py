"""Losses on logits a few rows at a time: float32 copies of [rows, vocabulary] are large."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of one float32 copy of a piece's logits; a loss holds a few.
_PIECE_BYTES = 64 * 2**20

RowLoss = Callable[[Tensor, slice], Tensor]
"""The loss summed over some rows, from their logits [R, V] and where among all rows they are."""


def summed_by_rows(logits_NV: Tensor, loss: RowLoss, *, piece_bytes: int = _PIECE_BYTES) -> Tensor:
    """Sum of `loss` over all rows, with the gradient to the logits and nothing else.

    Each piece's gradient is taken in the forward pass; what is kept is one tensor as large as the logits, in their
    dtype, which their gradient is anyway.
    """
    rows = max(1, piece_bytes // (4 * logits_NV.shape[1]))
    total: Tensor = _ByRows.apply(logits_NV, loss, rows)  # type: ignore[no-untyped-call]
    return total


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, loss: RowLoss, rows: int) -> Tensor:
        total = logits_NV.new_zeros((), dtype=torch.promote_types(logits_NV.dtype, torch.float32))
        needs_gradient = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(logits_NV) if needs_gradient else None
        for start in range(0, len(logits_NV), rows):
            piece = slice(start, start + rows)
            logits_RV = logits_NV[piece].detach().requires_grad_(needs_gradient)
            with torch.set_grad_enabled(needs_gradient):
                value = loss(logits_RV, piece)
            total += value.detach()
            if gradient_NV is not None:
                [gradient_NV[piece]] = torch.autograd.grad(value, logits_RV)
        ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        [gradient_NV] = ctx.saved_tensors
        return gradient_NV * grad.to(gradient_NV.dtype), None, None
