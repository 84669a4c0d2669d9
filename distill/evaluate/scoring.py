"""Strict scoring of one answer: right or wrong, and, apart from that, whether it has a legal form at all.

The published Visual Haystacks scorer accepts any answer that contains the true word, so "yes and no" is
always right. Here an answer is right only if, normalised, it *is* the truth; anything around it makes it
wrong.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_WORD_BORDER = re.compile(r"--+|[^\w/'.\-]+")
_ARTICLE = re.compile(r"^(a|an|the) (?=.)")


@dataclass(frozen=True, kw_only=True)
class Score:
    """The verdict on one answer."""

    correct: bool
    """The normalised answer equals the normalised truth."""

    compliant: bool
    """The normalised answer is one of the legal answers, right or wrong; to an open question, one line of text."""

    official: float | None = None
    """What the task's own scorer gives, 0 to 1; None for a task without one."""


def normalise(text: str) -> str:
    """Folds case, spaces, Unicode forms, the punctuation around the text and one leading article.

    What SQuAD's scorer folds, except for punctuation and articles inside the text: those stay, so "yes/no" is
    not "yes no" and neither is "yes".
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _ARTICLE.sub("", _EDGES.sub("", text))


def score(answer: str, truth: str, legal_answers: Collection[str] | None) -> Score:
    """Scores one answer; `legal_answers` hold every answer the question allows, the truth among them, or are None."""
    if legal_answers is None:
        is_line = bool(normalise(answer)) and "\n" not in answer.strip()
        return Score(correct=normalise(answer) == normalise(truth), compliant=is_line)
    legal = {normalise(legal_answer) for legal_answer in legal_answers}
    if normalise(truth) not in legal:
        raise ValueError(f"truth: {truth!r} is none of the legal answers {sorted(legal)}")
    return Score(correct=normalise(answer) == normalise(truth), compliant=normalise(answer) in legal)


def haystack_words(answer: str) -> set[str]:
    """The words of an answer as Visual Haystacks' scorer takes them: lower case, split as by nltk's word_tokenize.

    Signs that nltk splits off end a word; a slash, a hyphen and an apostrophe inside a word do not.
    """
    return {word.strip("'.") for word in _WORD_BORDER.split(answer.lower())}
