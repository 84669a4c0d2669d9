import pytest
import torch

from distill.mixing import LinearMixing, SoftmaxMixing


def test_softmax_mixing_starts_uniform_and_its_rows_sum_to_one_after_any_change() -> None:
    mixing = SoftmaxMixing(2, 4)
    torch.testing.assert_close(mixing(), torch.full((2, 4), 0.25))
    mixing.logits_SH.data.normal_(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixing().sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("num_student_heads", "num_teacher_heads", "expected"),
    [
        (3, 3, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (2, 4, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]),
        (4, 2, [[1, 0], [1, 0], [0, 1], [0, 1]]),
    ],
    ids=["equal", "more teacher heads", "fewer teacher heads"],
)
def test_linear_mixing_starts_with_the_mean_of_neighbours(
    num_student_heads: int, num_teacher_heads: int, expected: list[list[float]]
) -> None:
    torch.testing.assert_close(
        LinearMixing(num_student_heads, num_teacher_heads)(), torch.tensor(expected, dtype=torch.float32)
    )


def test_linear_mixing_leaves_no_head_out_where_counts_do_not_divide() -> None:
    weights_SH = LinearMixing(3, 5)()
    assert (weights_SH.sum(dim=0) > 0).all()
    torch.testing.assert_close(weights_SH.sum(dim=1), torch.ones(3))
