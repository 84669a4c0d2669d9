import pytest
import torch

from distill.losses.logits import logit_distillation
from distill.losses.top_logits import TopLogits, take_top_logits, top_logit_distillation

SIZE = 50
TEMPERATURE = 2.0


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher; both vocabularies are larger than the tokenizer."""
    generator = torch.Generator().manual_seed(0)
    student_NV = torch.randn(7, SIZE + 3, generator=generator).requires_grad_()
    return student_NV, 3 * torch.randn(7, SIZE + 14, generator=generator)


def top_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor, k: int) -> torch.Tensor:
    top = take_top_logits(teacher_NV, k=k, temperature=TEMPERATURE, vocabulary_size=SIZE)
    return top_logit_distillation(student_NV, top, vocabulary_size=SIZE)


def full_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    return logit_distillation(student_NV, teacher_NV, temperature=TEMPERATURE, vocabulary_size=SIZE)


def test_with_one_token_left_out_it_is_the_full_kl_and_its_gradient(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student_NV, teacher_NV = logits
    top, full = top_kl(student_NV, teacher_NV, SIZE - 1), full_kl(student_NV, teacher_NV)
    torch.testing.assert_close(top, full)
    ours, theirs = (torch.autograd.grad(each, student_NV)[0] for each in (top, full))
    torch.testing.assert_close(ours, theirs)


def test_what_it_lacks_is_the_kl_among_the_others(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Chain rule: full = top + rest mass times the KL of the two models' distributions inside the rest."""
    student_NV, teacher_NV = (each.detach() for each in logits)
    top = take_top_logits(teacher_NV, k=9, temperature=TEMPERATURE, vocabulary_size=SIZE)
    inner_NV = [
        (each[:, :SIZE] / TEMPERATURE).scatter(1, top.token_NK, -torch.inf).log_softmax(dim=1)
        for each in (student_NV, teacher_NV)
    ]
    p_NV = inner_NV[1].exp()
    inner_N = torch.where(p_NV > 0, p_NV * (inner_NV[1] - inner_NV[0]), 0).sum(dim=1)
    missing = (top.log_rest_N.exp() * inner_N).mean() * TEMPERATURE**2
    torch.testing.assert_close(
        top_logit_distillation(student_NV, top, vocabulary_size=SIZE) + missing, full_kl(student_NV, teacher_NV)
    )


def test_more_tokens_come_closer_from_below(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    values = [top_kl(*logits, k).item() for k in (1, 4, 16, SIZE - 1)]
    assert values == sorted(values)
    assert values[0] > 0


def test_equal_models_have_none(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student_NV = logits[0]
    torch.testing.assert_close(top_kl(student_NV, student_NV.detach(), 5), torch.tensor(0.0))


def test_a_certain_teacher_leaves_a_finite_rest() -> None:
    """The others have e^-100 of the probability together, which 1 - p would round to nothing."""
    teacher_NV = torch.zeros(1, SIZE)
    teacher_NV[0, 3] = 2 * (100 + torch.log(torch.tensor(SIZE - 1.0)))
    student_NV = torch.zeros(1, SIZE, requires_grad=True)
    top = take_top_logits(teacher_NV, k=1, temperature=TEMPERATURE, vocabulary_size=SIZE)
    torch.testing.assert_close(top.log_rest_N, torch.tensor([-100.0]))
    loss = top_logit_distillation(student_NV, top, vocabulary_size=SIZE)
    torch.testing.assert_close(loss, TEMPERATURE**2 * torch.log(torch.tensor(float(SIZE))))
    assert torch.autograd.grad(loss, student_NV)[0].isfinite().all()


def test_many_rows_are_taken_in_pieces() -> None:
    """Of so wide a vocabulary that five rows are a piece."""
    generator = torch.Generator().manual_seed(0)
    student_NV, teacher_NV = (torch.randn(6, 3_000_000, generator=generator) for _ in range(2))
    top = take_top_logits(teacher_NV, k=3, temperature=TEMPERATURE, vocabulary_size=teacher_NV.shape[1])
    together = top_logit_distillation(student_NV, top, vocabulary_size=teacher_NV.shape[1])
    alone = [
        top_logit_distillation(
            student_NV[row],
            TopLogits(
                log_p_NK=top.log_p_NK[row],
                token_NK=top.token_NK[row],
                log_rest_N=top.log_rest_N[row],
                temperature=TEMPERATURE,
            ),
            vocabulary_size=teacher_NV.shape[1],
        )
        for row in torch.arange(6).split(1)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean())
