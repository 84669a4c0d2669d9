"""Asks a model every item of a task, scores the answers and counts them by size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from distill.evaluate.curve import CurvePoint
from distill.evaluate.scoring import score
from distill.evaluate.tasks import MiniatureTask
from distill.miniature.items import Item

MAX_NEW_TOKENS = 16
"""Room for any legal answer and a few words too many, which then show as non-compliant."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model generated for one item."""

    text: str
    prompt_tokens: int


class Runner(Protocol):
    """Gives items to a model."""

    def answer(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Answer]:
        """Answers items of one size greedily, in their order; tells `advance` how many were just finished."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One item, asked and scored."""

    images: int
    index: int
    needle_index: int
    truth: str
    answer: str
    correct: bool
    compliant: bool
    prompt_tokens: int


def measure(
    runner: Runner, task: MiniatureTask, sizes: Sequence[int], num_items: int, *, progress: bool
) -> list[Outcome]:
    """Asks `num_items` items at each size. The progress bar counts images, so that its time left is fair."""
    outcomes: list[Outcome] = []
    with tqdm(total=num_items * sum(sizes), unit="image", desc="evaluate", disable=not progress) as bar:
        for size in sizes:
            bar.set_postfix_str(f"{size} images a prompt")
            items = [task.item(size, index) for index in range(num_items)]
            answers = runner.answer(items, _advance_images(bar, size))
            outcomes += [
                _outcome(task, item, index, answer)
                for index, (item, answer) in enumerate(zip(items, answers, strict=True))
            ]
    return outcomes


def accuracy_curve(outcomes: Sequence[Outcome]) -> list[CurvePoint]:
    """One point for each number of images met, in growing order."""
    points = []
    for size in sorted({outcome.images for outcome in outcomes}):
        at_size = [outcome for outcome in outcomes if outcome.images == size]
        points.append(
            CurvePoint(
                images=size,
                prompt_tokens=sum(outcome.prompt_tokens for outcome in at_size) / len(at_size),
                items=len(at_size),
                correct=sum(outcome.correct for outcome in at_size),
                compliant=sum(outcome.compliant for outcome in at_size),
            )
        )
    return points


def _advance_images(bar: "tqdm[Any]", size: int) -> Callable[[int], None]:
    def advance(num_items: int) -> None:
        bar.update(num_items * size)

    return advance


def _outcome(task: MiniatureTask, item: Item, index: int, answer: Answer) -> Outcome:
    verdict = score(answer.text, item.answer, task.legal_answers)
    return Outcome(
        images=len(item.images),
        index=index,
        needle_index=item.needle_index,
        truth=item.answer,
        answer=answer.text,
        correct=verdict.correct,
        compliant=verdict.compliant,
        prompt_tokens=answer.prompt_tokens,
    )
