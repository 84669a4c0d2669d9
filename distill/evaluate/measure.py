"""Asks a model every item of a task, scores the answers and counts them by size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from distill.evaluate.curve import CurvePoint
from distill.evaluate.item import MAX_NEW_TOKENS, Item
from distill.evaluate.tasks import Task

__all__ = ["MAX_NEW_TOKENS", "Answer", "Answered", "Outcome", "Runner", "accuracy_curve", "measure"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model generated for one item."""

    text: str
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An item with its answer."""

    item: Item
    answer: Answer


class Runner(Protocol):
    """Gives items to a model."""

    def answer(self, items: Iterable[Item], done: Callable[[Answered], None]) -> list[Answer]:
        """Answers items greedily and returns the answers in their order.

        Takes the items as it comes to them, so that never all of their images are in memory, and calls `done` with
        each answer as soon as it is there, in any order.
        """


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
    depth: float | None = None
    """Where the needle is, 0 to 1, where `needle_index` does not tell all."""
    size: int | None = None
    """What the item counts under, if that is not its number of images."""
    official: float | None = None
    """What the task's own scorer gives; None for a task without one."""

    @property
    def place(self) -> tuple[int, int]:
        """Size and index: what tells an item from the others of its task."""
        return (self.images if self.size is None else self.size, self.index)


def measure(
    runner: Runner,
    task: Task,
    sizes: Sequence[int],
    num_items: int,
    *,
    progress: bool,
    known: Sequence[Outcome] = (),
    record: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Asks `num_items` items at each size, all but the known ones, and returns the outcomes of all.

    Args:
        progress: shows a bar. It counts sizes, not items, so that its time left is fair.
        known: outcomes of an earlier part of the same measurement; those of other places are left out.
        record: told of every new outcome, as soon as it is there.
    """
    places = [(size, index) for size in sizes for index in range(num_items)]
    outcomes = {outcome.place: outcome for outcome in known}
    outcomes = {place: outcomes[place] for place in places if place in outcomes}
    num_known = sum(size for size, _ in outcomes)
    total = num_items * sum(sizes)
    with tqdm(total=total, initial=num_known, unit=task.size_unit, desc="evaluate", disable=not progress) as bar:
        for size in sizes:
            bar.set_postfix_str(f"size {size}")
            missing = [index for index in range(num_items) if (size, index) not in outcomes]

            def done(answered: Answered) -> None:
                outcome = _outcome(task, answered)
                record(outcome)
                outcomes[outcome.place] = outcome
                bar.update(answered.item.size)

            runner.answer((task.item(size, index) for index in missing), done)
    return [outcomes[place] for place in places]


def accuracy_curve(outcomes: Sequence[Outcome]) -> list[CurvePoint]:
    """One point for each size met, in growing order; its images are the mean over its items, to the nearest.

    Raises:
        ValueError: two sizes have the same number of images, so that accuracy has no place between them.
    """
    points: dict[int, CurvePoint] = {}
    for size in sorted({outcome.place[0] for outcome in outcomes}):
        at_size = [outcome for outcome in outcomes if outcome.place[0] == size]
        images = round(sum(outcome.images for outcome in at_size) / len(at_size))
        if images in points:
            raise ValueError(f"--sizes: the items of {size} have {images} images as those of a smaller size; leave one")
        points[images] = CurvePoint(
            images=images,
            prompt_tokens=sum(outcome.prompt_tokens for outcome in at_size) / len(at_size),
            items=len(at_size),
            correct=sum(outcome.correct for outcome in at_size),
            compliant=sum(outcome.compliant for outcome in at_size),
        )
    return list(points.values())


def _outcome(task: Task, answered: Answered) -> Outcome:
    item, answer = answered.item, answered.answer
    verdict = task.score(item, answer.text)
    return Outcome(
        images=item.num_images,
        index=item.index,
        needle_index=item.needle_index,
        truth=item.answer,
        answer=answer.text,
        correct=verdict.correct,
        compliant=verdict.compliant,
        prompt_tokens=answer.prompt_tokens,
        depth=item.depth,
        size=None if item.size == item.num_images else item.size,
        official=verdict.official,
    )
