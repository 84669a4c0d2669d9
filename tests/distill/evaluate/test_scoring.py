import pytest

from distill.evaluate.scoring import Score, normalise, score

RIGHT = Score(correct=True, compliant=True)
WRONG = Score(correct=False, compliant=True)
NO_ANSWER = Score(correct=False, compliant=False)

YES_NO = ("yes", "no")
OBJECTS = ("blue square", "red circle")


@pytest.mark.parametrize("answer", ["yes", "Yes", " YES.\n", "**Yes**", "\u201cyes!\u201d", "\uff39\uff25\uff33"])
def test_forms_of_the_right_answer(answer: str) -> None:
    assert score(answer, "yes", YES_NO) == RIGHT


@pytest.mark.parametrize(
    "answer",
    [
        "yes and no",
        "yes/no",
        "yes no",
        "no, yes",
        "Yes or No: yes",
        "yes, there is",
        "I cannot tell, no idea",
        "",
        ".",
    ],
)
@pytest.mark.parametrize("truth", YES_NO)
def test_an_answer_that_is_not_just_yes_or_no_is_wrong_whatever_the_truth(answer: str, truth: str) -> None:
    assert score(answer, truth, YES_NO) == NO_ANSWER


@pytest.mark.parametrize("answer", ["nothing", "nope", "yesterday", "not no"])
def test_a_word_that_contains_the_answer_is_not_the_answer(answer: str) -> None:
    assert score(answer, "no", YES_NO) == NO_ANSWER


def test_a_legal_answer_may_be_wrong() -> None:
    assert score("No.", "yes", YES_NO) == WRONG
    assert score("red circle", "blue square", OBJECTS) == WRONG


@pytest.mark.parametrize("answer", ["blue square", "A blue square.", "the  blue\nsquare", "Blue Square"])
def test_forms_of_an_open_answer(answer: str) -> None:
    assert score(answer, "blue square", OBJECTS) == RIGHT


@pytest.mark.parametrize("answer", ["square", "blue", "blue squares", "blue square red circle", "bluesquare"])
def test_a_part_of_an_open_answer_or_more_than_one_is_wrong(answer: str) -> None:
    assert score(answer, "blue square", OBJECTS) == NO_ANSWER


def test_only_a_leading_article_is_dropped() -> None:
    assert normalise("the a") == "a"
    assert normalise("a") == "a"
    assert normalise("another") == "another"


def test_a_truth_outside_the_legal_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="'maybe' is none of the legal answers"):
        score("yes", "maybe", YES_NO)
