"""The two losses on the logits of the answer."""

import torch.nn.functional as F
from torch import Tensor

from distill.losses.by_rows import summed_by_rows


def logit_distillation(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float, vocabulary_size: int) -> Tensor:
    """KL(teacher ‖ student) at a temperature, times its square (Hinton et al., arXiv 1503.02531), mean over rows.

    Models of one family pad their embeddings to different sizes: both are cut to the tokenizer's true size. Padding
    the smaller with zeros would give tokens that do not exist a share of the probability.

    Raises:
        ValueError: a model has fewer logits than the tokenizer has tokens.
    """
    for name, logits_NV in (("student", student_NV), ("teacher", teacher_NV)):
        if logits_NV.shape[-1] < vocabulary_size:
            raise ValueError(
                f"{name}: {logits_NV.shape[-1]} logits, expected at least the tokenizer's {vocabulary_size}"
            )

    def divergence(student_RV: Tensor, rows: slice) -> Tensor:
        log_q_RV, log_p_RV = (
            (logits_RV[:, :vocabulary_size].float() / temperature).log_softmax(dim=-1)
            for logits_RV in (student_RV, teacher_NV[rows])
        )
        return F.kl_div(log_q_RV, log_p_RV, reduction="sum", log_target=True)

    return summed_by_rows(student_NV, divergence) / len(student_NV) * temperature**2


def answer_cross_entropy(student_NV: Tensor, answer_N: Tensor) -> Tensor:
    """Cross-entropy of the true answer tokens (with the one that ends the turn), mean over rows."""
    total = summed_by_rows(
        student_NV, lambda student_RV, rows: F.cross_entropy(student_RV.float(), answer_N[rows], reduction="sum")
    )
    return total / len(student_NV)
