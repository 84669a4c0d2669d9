"""Logit distillation from a teacher of whose softmax only the likeliest tokens are kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.by_rows import summed_by_rows


@dataclass(frozen=True, kw_only=True)
class TopLogits:
    """The k likeliest tokens of each row's softmax at one temperature, and all others as one."""

    log_p_NK: Tensor
    token_NK: Tensor
    log_rest_N: Tensor
    """Log of the probability that all other tokens have together."""
    temperature: float


def take_top_logits(logits_NV: Tensor, *, k: int, temperature: float, vocabulary_size: int) -> TopLogits:
    """The top of softmax(logits/temperature) over the tokenizer's true size, in float32."""
    log_p_NV = (logits_NV[:, :vocabulary_size].float() / temperature).log_softmax(dim=-1)
    top = log_p_NV.topk(k, dim=-1)
    return TopLogits(
        log_p_NK=top.values,
        token_NK=top.indices,
        log_rest_N=_log_sum_of_others(log_p_NV, top.indices),
        temperature=temperature,
    )


def top_logit_distillation(student_NV: Tensor, teacher: TopLogits, *, vocabulary_size: int) -> Tensor:
    """`logit_distillation` with all tokens outside the teacher's top taken as one, at its recorded temperature.

    Both models' probabilities of those tokens are added up, so the student is told how much the others may have
    together and not how to share it out. By the chain rule of the KL this is at most the full one, by the teacher's
    remaining mass times the KL inside the remainder; it equals the full one if the remainder is a single token.
    """
    temperature = teacher.temperature

    def divergence(student_RV: Tensor, rows: slice) -> Tensor:
        token_RK = teacher.token_NK[rows]
        log_q_RV = (student_RV[:, :vocabulary_size].float() / temperature).log_softmax(dim=-1)
        rest_R1 = _log_sum_of_others(log_q_RV, token_RK)[:, None]
        log_q_RK = torch.cat([log_q_RV.gather(1, token_RK), rest_R1], dim=1)
        log_p_RK = torch.cat([teacher.log_p_NK[rows], teacher.log_rest_N[rows, None]], dim=1)
        return (log_p_RK.exp() * (log_p_RK - log_q_RK)).sum()

    return summed_by_rows(student_NV, divergence) / len(student_NV) * temperature**2


def _log_sum_of_others(log_p_NV: Tensor, token_NK: Tensor) -> Tensor:
    # Not 1 - sum of the top: the remainder may be far below float32's spacing at 1.
    return log_p_NV.scatter(1, token_NK, -torch.inf).logsumexp(dim=1)
