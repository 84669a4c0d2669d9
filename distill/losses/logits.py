"""The two losses on the logits of the answer."""

import torch.nn.functional as F
from torch import Tensor


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
    log_student_NV = (student_NV[:, :vocabulary_size].float() / temperature).log_softmax(dim=-1)
    log_teacher_NV = (teacher_NV[:, :vocabulary_size].float() / temperature).log_softmax(dim=-1)
    return F.kl_div(log_student_NV, log_teacher_NV, reduction="batchmean", log_target=True) * temperature**2


def answer_cross_entropy(student_NV: Tensor, answer_N: Tensor) -> Tensor:
    """Cross-entropy of the true answer tokens (with the one that ends the turn), mean over rows."""
    return F.cross_entropy(student_NV.float(), answer_N)
