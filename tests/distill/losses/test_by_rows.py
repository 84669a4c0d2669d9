import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.by_rows import summed_by_rows

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_pieces_sum_to_the_whole_in_value_and_gradient(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(11, 17, generator=generator).to(dtype).requires_grad_()
    answer_N = torch.randint(17, (11,), generator=generator)
    expected = 0.3 * F.cross_entropy(logits_NV.float(), answer_N, reduction="sum")
    seen = []

    def loss(logits_RV: Tensor, piece: slice) -> Tensor:
        seen.append(len(logits_RV))
        return F.cross_entropy(logits_RV.float(), answer_N[piece], reduction="sum")

    actual = 0.3 * summed_by_rows(logits_NV, loss, piece_bytes=4 * 17 * rows)

    assert max(seen) == rows
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    [found], [truth] = torch.autograd.grad(actual, logits_NV), torch.autograd.grad(expected, logits_NV)
    torch.testing.assert_close(found, truth, rtol=0, atol=TOLERANCE[dtype])


def test_without_a_gradient_it_is_the_value_alone() -> None:
    logits_NV = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(summed_by_rows(logits_NV, lambda logits_RV, _: logits_RV.sum()), logits_NV.sum())
