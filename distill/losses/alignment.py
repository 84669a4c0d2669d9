"""Head-level Q/K alignment of LAid (arXiv 2512.21576, section on head-level alignment)."""

import torch
from torch import Tensor

from distill.losses.rows import Rows
from distill.signals import QueryKey


def query_key_alignment(
    student: QueryKey, teacher: QueryKey, *, rows: Rows, weights_q_SH: Tensor, weights_k_SH: Tensor
) -> Tensor:
    """How far each student head's rotated Q and K lie from its learned mix of the teacher's heads, a scalar.

    Q^s_i ≈ Σ_j w_ij Q^t_j and K^s_i ≈ Σ_j w_ij K^t_j at the given rows, with weights of their own for query heads and
    for key-value heads. The paper takes the Frobenius norm; here it is squared and divided by the number of entries,
    so that its size does not depend on the length or the number of heads.

    Raises:
        ValueError: unequal head sizes.
    """
    sizes = student.q_BHTD.shape[-1], teacher.q_BHTD.shape[-1]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"Q/K alignment: student head size {sizes[0]}, teacher head size {sizes[1]}, expected equal sizes"
        )
    queries = _mean_square(student.q_BHTD, teacher.q_BHTD, rows, weights_q_SH)
    keys = _mean_square(student.k_BKTD, teacher.k_BKTD, rows, weights_k_SH)
    return queries + keys


def _mean_square(student_BHTD: Tensor, teacher_BHTD: Tensor, rows: Rows, weights_SH: Tensor) -> Tensor:
    dtype = torch.promote_types(student_BHTD.dtype, torch.float32)
    x_BSRD = rows.gather(student_BHTD).to(dtype)
    target_BSRD = torch.einsum("sh,bhrd->bsrd", weights_SH.to(dtype), rows.gather(teacher_BHTD).to(dtype))
    error_BSR = (x_BSRD - target_BSRD).square().mean(dim=-1) * rows.valid_BR[:, None]
    return error_BSR.sum() / (rows.valid_BR.sum() * x_BSRD.shape[1])
