import pytest
import torch

from distill.losses.logits import answer_cross_entropy, logit_distillation


def logits(seed: int, vocabulary: int) -> torch.Tensor:
    return torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_value_by_the_definition() -> None:
    student_NV, teacher_NV = logits(0, 11), logits(1, 11)
    p_NV, q_NV = (teacher_NV / 2).softmax(-1), (student_NV / 2).softmax(-1)
    expected = 4 * (p_NV * (p_NV / q_NV).log()).sum(-1).mean()
    actual = logit_distillation(student_NV, teacher_NV, temperature=2.0, vocabulary_size=11)
    torch.testing.assert_close(actual, expected)


def test_unequal_vocabularies_are_cut_to_the_tokenizer() -> None:
    student_NV, teacher_NV = logits(0, 16), logits(1, 24)
    cut = logit_distillation(student_NV[:, :11], teacher_NV[:, :11], temperature=1.0, vocabulary_size=11)
    student_NV[:, 11:], teacher_NV[:, 11:] = 50.0, -50.0
    actual = logit_distillation(student_NV, teacher_NV, temperature=1.0, vocabulary_size=11)
    assert torch.equal(actual, cut)


def test_a_model_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher: 8 logits, expected at least the tokenizer's 11"):
        logit_distillation(logits(0, 16), logits(1, 8), temperature=1.0, vocabulary_size=11)


def test_cross_entropy_is_the_mean_over_answer_tokens() -> None:
    student_NV = logits(0, 11)
    answer_N = torch.tensor([0, 3, 10, 3, 7])
    expected = -student_NV.log_softmax(-1)[torch.arange(5), answer_N].mean()
    torch.testing.assert_close(answer_cross_entropy(student_NV, answer_N), expected)
