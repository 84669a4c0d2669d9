"""Learned weights that make one target head of several teacher heads."""

import torch
from torch import Tensor, nn


class SoftmaxMixing(nn.Module):
    """A convex mix of the teacher's heads for each student head; uniform at the start."""

    def __init__(self, num_student_heads: int, num_teacher_heads: int) -> None:
        super().__init__()
        self.logits_SH = nn.Parameter(torch.zeros(num_student_heads, num_teacher_heads))

    def forward(self) -> Tensor:
        """The weights, [student heads, teacher heads], rows summing to 1."""
        return self.logits_SH.softmax(dim=-1)


class LinearMixing(nn.Module):
    """Free weights w_ij, as in the paper's Q/K alignment.

    The paper does not give their initial values: each student head starts as the mean of its share of neighbouring
    teacher heads, which keeps the heads of one key-value group together (the identity where counts are equal).
    """

    def __init__(self, num_student_heads: int, num_teacher_heads: int) -> None:
        super().__init__()
        student_S1 = torch.arange(num_student_heads)[:, None]
        teacher_H = torch.arange(num_teacher_heads)
        belongs_SH = (teacher_H * num_student_heads // num_teacher_heads == student_S1) | (
            student_S1 * num_teacher_heads // num_student_heads == teacher_H
        )
        self.weight_SH = nn.Parameter(belongs_SH.float() / belongs_SH.sum(dim=1, keepdim=True))

    def forward(self) -> Tensor:
        """The weights, [student heads, teacher heads]."""
        # A copy: FSDP hooks what a module returns, and on the parameter itself hooks would pile up.
        return self.weight_SH.clone()
