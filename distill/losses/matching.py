"""Progressive distance-weighted attention matching of LAid (arXiv 2512.21576), chunked over query rows.

The paper names the loss but not its formula; this one is ours. Both models' attention rows are tilted towards far
keys, p~(j) ∝ p(j)·(1 + Δ_ij/Δ0)^γ, the teacher's heads are mixed per student head, P_i = Σ_j a_ij p~^t_j, and the loss
is the mean over rows and student heads of KL(P_i ‖ p~^s_i). With γ = 0 it is plain attention matching.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.losses.kinds import DistanceKind
from distill.losses.rows import Places, Rows
from distill.signals import QueryKey


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """The factor (1 + Δ/Δ0)^γ on attention, as a bias on the logits."""

    kind: DistanceKind
    reference_distance: float
    gamma: float

    def bias(self, places: Places, index_BR: Tensor, dtype: torch.dtype) -> Tensor:
        """γ·log(1 + Δ/Δ0), [B, R, T]."""
        distance_BRT = places.distance(self.kind, index_BR).to(dtype)
        return self.gamma * torch.log1p(distance_BRT / self.reference_distance)


def attention_matching(
    student: QueryKey,
    teacher: QueryKey,
    *,
    rows: Rows,
    places: Places,
    tilt: Tilt,
    mixing_SH: Tensor | None,
    chunk_rows: int,
) -> Tensor:
    """Mean over rows and student heads of the tilted KL, a scalar with gradients to both models' q and k.

    Sequences are padded on the right, so the causal mask alone keeps padding out of every valid row. At most a
    [B, H, chunk_rows, T] map lives at a time: with more than one chunk, each is computed again in the backward pass.

    Args:
        mixing_SH: weights of the teacher's query heads for each student head, rows summing to 1; None pairs heads
            one to one.

    Raises:
        ValueError: unequal head counts without mixing weights.
    """
    num_heads = student.q_BHTD.shape[1]
    if mixing_SH is None and teacher.q_BHTD.shape[1] != num_heads:
        raise ValueError(
            f"attention matching: {teacher.q_BHTD.shape[1]} teacher heads for {num_heads} student heads, "
            "expected equal counts or mixing weights"
        )
    chunk_kl = partial(_chunk_kl, student, teacher, places=places, tilt=tilt, mixing_SH=mixing_SH)
    chunks = list(rows.chunks(chunk_rows))
    if len(chunks) == 1:
        total = chunk_kl(chunks[0])
    else:
        total = torch.stack([checkpoint(chunk_kl, chunk, use_reentrant=False) for chunk in chunks]).sum()
    return total / (rows.valid_BR.sum() * num_heads)


def _chunk_kl(
    student: QueryKey, teacher: QueryKey, rows: Rows, *, places: Places, tilt: Tilt, mixing_SH: Tensor | None
) -> Tensor:
    """Sum of the KL over the valid rows of one chunk and all student heads."""
    num_keys = student.k_BKTD.shape[2]
    future_BRT = torch.arange(num_keys, device=rows.index_BR.device) > rows.index_BR[:, :, None]
    dtype = torch.promote_types(student.q_BHTD.dtype, torch.float32)
    bias_BRT = tilt.bias(places, rows.index_BR, dtype).masked_fill(future_BRT, -torch.inf)
    log_s_BSRT = _logits(student, rows, bias_BRT).log_softmax(dim=-1)
    log_t_BHRT = _logits(teacher, rows, bias_BRT).log_softmax(dim=-1)
    future_B1RT = future_BRT[:, None]
    if mixing_SH is None:
        p_BSRT, log_p_BSRT = log_t_BHRT.exp(), log_t_BHRT
    else:
        p_BSRT = torch.einsum("sh,bhrt->bsrt", mixing_SH.to(log_t_BHRT.dtype), log_t_BHRT.exp())
        log_p_BSRT = p_BSRT.clamp_min(torch.finfo(p_BSRT.dtype).tiny).log()
    # Future keys have probability 0 on both sides: they add nothing, but -inf minus -inf must not meet a product.
    difference_BSRT = (log_p_BSRT - log_s_BSRT).masked_fill(future_B1RT, 0.0)
    kl_BSR = (p_BSRT * difference_BSRT).sum(dim=-1)
    return (kl_BSR * rows.valid_BR[:, None]).sum()


def _logits(layer: QueryKey, rows: Rows, bias_BRT: Tensor) -> Tensor:
    """Scaled dot products of the rows with every key plus the bias, [B, H, R, T], in the bias's dtype."""
    q_BHRD = rows.gather(layer.q_BHTD).to(bias_BRT.dtype)
    k_BKTD = layer.k_BKTD.to(bias_BRT.dtype)
    # Query heads of one key-value head are neighbours.
    q_BKGRD = q_BHRD.reshape(len(q_BHRD), k_BKTD.shape[1], -1, *q_BHRD.shape[2:])
    logits_BKGRT = torch.einsum("bkgrd,bktd->bkgrt", q_BKGRD, k_BKTD) * layer.scale
    return logits_BKGRT.flatten(1, 2) + bias_BRT[:, None]
