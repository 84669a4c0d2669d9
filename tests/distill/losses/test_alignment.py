import pytest
import torch
from torch import Tensor

from distill.losses.alignment import query_key_alignment
from distill.losses.rows import rows_where
from distill.signals import QueryKey


def query_key(seed: int, heads: int, key_value_heads: int, size: int = 8) -> QueryKey:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, n, 9, size, generator=generator, dtype=torch.float64) for n in (heads, key_value_heads))
    return QueryKey(q_BHTD=q, k_BKTD=k, scale=1.0)


def frobenius(student_BHTD: Tensor, teacher_BHTD: Tensor, weights_SH: Tensor) -> float:
    """Squared norm per entry over the tokens of both samples: 9 of the first, 5 of the second."""
    total, entries = 0.0, 0
    for sample, length in enumerate((9, 5)):
        for head in range(student_BHTD.shape[1]):
            mix_TD = sum(w * t for w, t in zip(weights_SH[head], teacher_BHTD[sample], strict=True))
            error_TD = (student_BHTD[sample, head] - mix_TD)[:length]
            total += float(torch.linalg.matrix_norm(error_TD) ** 2)
            entries += error_TD.numel()
    return total / entries


def test_equals_the_frobenius_norm_of_both_and_ignores_padding() -> None:
    student, teacher = query_key(0, 4, 2), query_key(1, 6, 3)
    weights_q_SH, weights_k_SH = torch.randn(4, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    rows = rows_where(torch.arange(9) < torch.tensor([[9], [5]]))
    actual = query_key_alignment(student, teacher, rows=rows, weights_q_SH=weights_q_SH, weights_k_SH=weights_k_SH)
    expected = frobenius(student.q_BHTD, teacher.q_BHTD, weights_q_SH) + frobenius(
        student.k_BKTD, teacher.k_BKTD, weights_k_SH
    )
    assert float(actual) == pytest.approx(expected, rel=1e-12)


def test_gradients_reach_the_student_and_the_weights() -> None:
    student, teacher = query_key(0, 2, 1), query_key(1, 2, 1)
    rows = rows_where(torch.ones(2, 9, dtype=torch.bool))
    leaves = [student.q_BHTD, student.k_BKTD, torch.eye(2, dtype=torch.float64), torch.eye(1, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_()

    def loss(q: Tensor, k: Tensor, weights_q: Tensor, weights_k: Tensor) -> Tensor:
        moved = QueryKey(q_BHTD=q, k_BKTD=k, scale=1.0)
        return query_key_alignment(moved, teacher, rows=rows, weights_q_SH=weights_q, weights_k_SH=weights_k)

    assert torch.autograd.gradcheck(loss, leaves)


def test_unequal_head_sizes_are_refused() -> None:
    rows = rows_where(torch.ones(2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="student head size 8, teacher head size 16"):
        query_key_alignment(
            query_key(0, 2, 1),
            query_key(1, 2, 1, size=16),
            rows=rows,
            weights_q_SH=torch.eye(2),
            weights_k_SH=torch.eye(1),
        )
