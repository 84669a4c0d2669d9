"""Progressive distance-weighted attention matching of LAid (arXiv 2512.21576), in memory linear in the length.

The paper names the loss but not its formula; this one is ours. Both models' attention rows are tilted towards far
keys, p~(j) ∝ p(j)·(1 + Δ_ij/Δ0)^γ, the teacher's heads are mixed per student head, P_i = Σ_j a_ij p~^t_j, and the loss
is the mean over rows and student heads of KL(P_i ‖ p~^s_i). With γ = 0 it is plain attention matching.

Letters beside those of `distill.signals`: S student query heads, G query heads of one key-value head.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.losses.kinds import DistanceKind, MatchingKernel
from distill.losses.rows import Places, Rows
from distill.signals import QueryKey

# Where a key is not seen, in place of -inf: the logarithms stay finite, so that times probability 0 they are 0.
_UNSEEN = -1e30


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """The factor (1 + Δ/Δ0)^γ on attention, as a bias on the logits."""

    kind: DistanceKind
    reference_distance: float
    gamma: float

    def bias(self, places: Places, index_BR: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
        """γ·log(1 + Δ/Δ0) at each of the first `num_keys` keys, and next to -inf at those after the row: [B, R, T]."""
        future_BRT = torch.arange(num_keys, device=index_BR.device) > index_BR[:, :, None]
        distance_BRT = places.distance(self.kind, index_BR, num_keys).to(dtype)
        bias_BRT = self.gamma * torch.log1p(distance_BRT / self.reference_distance)
        return bias_BRT.masked_fill_(future_BRT, _UNSEEN)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is matched, and in how large chunks."""

    student: QueryKey
    teacher: QueryKey
    rows: Rows
    places: Places
    tilt: Tilt
    mixing_SH: Tensor | None
    max_pairs: int
    """About so many rows times keys in a chunk, each with all samples and heads."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """The KL summed over rows and heads, and its gradients, where asked for; all in the same floating type."""

    total: Tensor
    grad_q_BSRD: Tensor | None
    """Of q at the rows."""
    grad_k_BKTD: Tensor | None
    grad_mixing_SH: Tensor | None

    @classmethod
    def zeros(cls, task: Task, dtype: torch.dtype, *, wants_qk: bool, wants_mixing: bool) -> "Sums":
        """To add to."""
        q_BSTD, k_BKTD = task.student.q_BHTD, task.student.k_BKTD
        num_rows = task.rows.index_BR.shape[1]
        shape = (*q_BSTD.shape[:2], num_rows, q_BSTD.shape[3])
        return cls(
            total=q_BSTD.new_zeros((), dtype=dtype),
            grad_q_BSRD=q_BSTD.new_zeros(shape, dtype=dtype) if wants_qk else None,
            grad_k_BKTD=k_BKTD.new_zeros(k_BKTD.shape, dtype=dtype) if wants_qk else None,
            grad_mixing_SH=torch.zeros_like(task.mixing_SH, dtype=dtype)
            if task.mixing_SH is not None and wants_mixing
            else None,
        )


def attention_matching(
    student: QueryKey,
    teacher: QueryKey,
    *,
    rows: Rows,
    places: Places,
    tilt: Tilt,
    mixing_SH: Tensor | None,
    chunk_bytes: int,
    kernel: MatchingKernel = "auto",
) -> Tensor:
    """Mean over rows and student heads of the tilted KL: a scalar with gradients to the student and the mixing.

    Sequences are padded on the right, so the causal mask alone keeps padding out of every valid row. The gradients
    have a closed form and are made in the forward pass, chunk by chunk: no map is kept. What is kept is float32 and as
    large as the student's q at these rows and its k.

    Args:
        mixing_SH: weights of the teacher's query heads for each student head, rows summing to 1; None pairs heads
            one to one.
        chunk_bytes: about the size of one float32 map [B, heads, rows of a chunk, its keys]; four live at a time.
        kernel: what computes it. `torch` runs anywhere; `triton` needs a CUDA device; `auto` takes Triton where it
            is installed, the device is a CUDA device and a trial there agrees with `torch` (see `matching_check`).

    Raises:
        ValueError: unequal head counts without mixing weights; a teacher that asks for gradients; the kernel
            `triton` for what it cannot take.
    """
    num_heads, num_teacher_heads = student.q_BHTD.shape[1], teacher.q_BHTD.shape[1]
    if mixing_SH is None and num_teacher_heads != num_heads:
        raise ValueError(
            f"attention matching: {num_teacher_heads} teacher heads for {num_heads} student heads, "
            "expected equal counts or mixing weights"
        )
    if teacher.q_BHTD.requires_grad or teacher.k_BKTD.requires_grad:
        raise ValueError("attention matching: the teacher's q and k ask for gradients, expected them detached")
    task = Task(
        student=student,
        teacher=teacher,
        rows=rows,
        places=places,
        tilt=tilt,
        mixing_SH=mixing_SH,
        max_pairs=chunk_bytes // 4 // (len(rows.index_BR) * max(num_heads, num_teacher_heads)),
    )
    total: Tensor = _Matching.apply(  # type: ignore[no-untyped-call]
        student.q_BHTD, student.k_BKTD, mixing_SH, task, _chosen(kernel, task)
    )
    return total / (rows.valid_BR.sum() * num_heads)


_SumsFunction = Callable[..., Sums]


def _chosen(kernel: MatchingKernel, task: Task) -> _SumsFunction:
    """The function of a kernel: `chunked_sums` or `triton_sums`."""
    if kernel == "torch" or (kernel == "auto" and not task.student.q_BHTD.is_cuda):
        return chunked_sums
    if importlib.util.find_spec("triton") is None:
        if kernel == "auto":
            return chunked_sums
        raise ValueError("loss.matching.kernel: 'triton' is not installed; pip install triton, or take 'torch'")
    # Not above: Triton is not there on every system, and slow to import.
    from distill.losses.matching_check import obstacle, works
    from distill.losses.matching_triton import triton_sums

    found = obstacle(task)
    if kernel == "triton" and found is not None:
        raise ValueError(f"loss.matching.kernel: 'triton' cannot take {found}, expected another kernel: 'auto'")
    return triton_sums if kernel == "triton" or (found is None and works(task)) else chunked_sums


class _Matching(torch.autograd.Function):
    """Sum of the KL over rows and heads; q, k and the mixing are those of the task, beside it for autograd."""

    @staticmethod
    def forward(
        ctx: Any, q_BSTD: Tensor, k_BKTD: Tensor, mixing_SH: Tensor | None, task: Task, sums_function: _SumsFunction
    ) -> Tensor:
        # Autocast would take the maps' products in half precision.
        with torch.autocast(q_BSTD.device.type, enabled=False):
            sums = sums_function(task, wants_qk=any(ctx.needs_input_grad[:2]), wants_mixing=ctx.needs_input_grad[2])
        ctx.save_for_backward(sums.grad_q_BSRD, sums.grad_k_BKTD, sums.grad_mixing_SH, task.rows.index_BR)
        ctx.num_tokens = q_BSTD.shape[2]
        ctx.dtypes = q_BSTD.dtype, k_BKTD.dtype, None if mixing_SH is None else mixing_SH.dtype
        return sums.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q_BSRD, grad_k_BKTD, grad_mixing_SH, index_BR = ctx.saved_tensors
        grads: list[Tensor | None] = [None, None, None]
        if grad_q_BSRD is not None:
            grad_q_BSTD = grad_q_BSRD.new_zeros((*grad_q_BSRD.shape[:2], ctx.num_tokens, grad_q_BSRD.shape[3]))
            index_BSRD = index_BR[:, None, :, None].expand_as(grad_q_BSRD)
            # Added, not set: the index of a row that is not there may be that of one that is.
            grad_q_BSTD.scatter_add_(2, index_BSRD, grad_q_BSRD).mul_(grad)
            grads[0], grads[1] = grad_q_BSTD.to(ctx.dtypes[0]), (grad * grad_k_BKTD).to(ctx.dtypes[1])
        if grad_mixing_SH is not None:
            grads[2] = (grad * grad_mixing_SH).to(ctx.dtypes[2])
        return (*grads, None, None)


def chunked_sums(task: Task, *, wants_qk: bool, wants_mixing: bool) -> Sums:
    """The sums by PyTorch's own operators, on any device, a few rows with all their keys at a time.

    In float64 for float64 inputs, in float32 for all others.
    """
    dtype = torch.promote_types(task.student.q_BHTD.dtype, torch.float32)
    sums = Sums.zeros(task, dtype, wants_qk=wants_qk, wants_mixing=wants_mixing)
    student = _Keys(task.student.k_BKTD.to(dtype), task.student.scale)
    teacher = _Keys(task.teacher.k_BKTD.to(dtype), task.teacher.scale)
    weights_SH = None if task.mixing_SH is None else task.mixing_SH.to(dtype)
    done = 0
    for chunk, num_keys in task.rows.causal_chunks(task.max_pairs):
        piece = slice(done, done := done + chunk.index_BR.shape[1])
        valid_B1R1 = chunk.valid_BR[:, None, :, None].to(dtype)
        bias_BRT = task.tilt.bias(task.places, chunk.index_BR, num_keys, dtype)
        # Rows that are not there have q = 0 and weight 0, and so no part in any sum below.
        q_BSRD = chunk.gather(task.student.q_BHTD).to(dtype) * valid_B1R1
        log_s_BSRT = student.logits(q_BSRD, num_keys).add_(bias_BRT[:, None]).log_softmax(dim=-1)
        teacher_q_BHRD = chunk.gather(task.teacher.q_BHTD).to(dtype)
        p_BHRT = teacher.logits(teacher_q_BHRD, num_keys).add_(bias_BRT[:, None]).softmax(-1)
        p_BSRT = p_BHRT if weights_SH is None else torch.einsum("sh,bhrt->bsrt", weights_SH, p_BHRT)
        ratio_BSRT = p_BSRT.clamp_min(torch.finfo(dtype).tiny).log_().sub_(log_s_BSRT)
        kl_BSR = torch.linalg.vecdot(p_BSRT, ratio_BSRT)
        sums.total.add_((kl_BSR * valid_B1R1[..., 0]).sum())
        if sums.grad_mixing_SH is not None:
            # d(P log(P/p))/dP = log(P/p) + 1, and each teacher row sums to 1.
            ratio_BSRT *= valid_B1R1
            sums.grad_mixing_SH.add_(torch.einsum("bsrt,bhrt->sh", ratio_BSRT, p_BHRT) + valid_B1R1.sum())
        if sums.grad_q_BSRD is not None and sums.grad_k_BKTD is not None:
            error_BSRT = log_s_BSRT.exp_().sub_(p_BSRT)
            sums.grad_q_BSRD[:, :, piece] = student.grad_q(error_BSRT) * valid_B1R1
            student.add_grad_k(sums.grad_k_BKTD, error_BSRT, q_BSRD)
    return sums


@dataclass(frozen=True)
class _Keys:
    """A model's keys, and the products with them; query heads of one key-value head are neighbours."""

    k_BKTD: Tensor
    scale: float

    def logits(self, q_BHRD: Tensor, num_keys: int) -> Tensor:
        """Scaled dot products with the first keys, [B, H, R, T], a new tensor."""
        q_BKXD = self._grouped(q_BHRD * self.scale)
        logits_BKXT = q_BKXD @ self.k_BKTD[:, :, :num_keys].mT
        return logits_BKXT.view(*q_BHRD.shape[:3], num_keys)

    def grad_q(self, error_BHRT: Tensor) -> Tensor:
        """The queries' gradient, [B, H, R, D], from that of the logits."""
        grad_BKXD = self._grouped(error_BHRT) @ self.k_BKTD[:, :, : error_BHRT.shape[3]]
        return grad_BKXD.view(*error_BHRT.shape[:3], -1).mul_(self.scale)

    def add_grad_k(self, grad_k_BKTD: Tensor, error_BHRT: Tensor, q_BHRD: Tensor) -> None:
        """Adds the keys' gradient from that of the logits."""
        grad_k_BKTD[:, :, : error_BHRT.shape[3]] += self._grouped(error_BHRT).mT @ self._grouped(q_BHRD * self.scale)

    def _grouped(self, x_BHRX: Tensor) -> Tensor:
        """[B, K, G·R, …]: the rows of all the query heads of a key-value head, one under the other."""
        return x_BHRX.reshape(len(x_BHRX), self.k_BKTD.shape[1], -1, x_BHRX.shape[3])
