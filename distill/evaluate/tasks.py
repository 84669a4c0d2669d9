"""What is asked: the items of a task, the same ones for every model, runner and day."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distill.evaluate.item import DrawnPicture, Item
from distill.evaluate.scoring import Score, score
from distill.miniature.items import FIRST_EVALUATION_SEED, Kind, legal_answers, make_item

_SIZES_PER_SEED = 10_000
_ITEMS_PER_SIZE = 10_000


class Task(Protocol):
    """A source of items; an item follows from its size and index alone, however many others are asked."""

    @property
    def name(self) -> str:
        """The task's name in reports."""
        ...

    @property
    def default_sizes(self) -> tuple[int, ...]:
        """What is asked if nobody says otherwise."""
        ...

    @property
    def size_unit(self) -> str:
        """What sizes count: "image" or "token"."""
        ...

    @property
    def official_scorer(self) -> str | None:
        """What the task's own scorer counts, in a few words; None for a task without one."""
        ...

    def check(self, sizes: Sequence[int], num_items: int) -> None:
        """ValueError names a size that cannot be asked, or has fewer items."""
        ...

    def source(self, size: int) -> str:
        """Where the items of a size are from, in a few words."""
        ...

    def most_images(self, sizes: Sequence[int]) -> int:
        """Images of the longest prompt of these sizes."""
        ...

    def item(self, size: int, index: int) -> Item:
        """Item `index` of a size; its images may be read only when they are needed."""
        ...

    def score(self, item: Item, answer: str) -> Score:
        """The verdict on an answer."""
        ...

    def identity(self) -> dict[str, Any]:
        """What the items follow from, ready for JSON: answers to other items never count as answers to these."""
        ...


@dataclass(frozen=True, kw_only=True)
class MiniatureTask:
    """Haystacks of the miniature world."""

    kind: Kind
    seed: int

    default_sizes = (1, 5, 10, 20, 50, 100, 150)
    official_scorer = None
    size_unit = "image"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}, expected 0 or more")

    @property
    def name(self) -> str:
        """The task's name in reports: "miniature/open" or "miniature/yes_no"."""
        return f"miniature/{self.kind}"

    def check(self, sizes: Sequence[int], num_items: int) -> None:
        """See `Task`."""
        for size in sizes:
            self.item_seed(size, num_items - 1)

    def source(self, size: int) -> str:
        """See `Task`."""
        return f"drawn, with {size} images"

    def most_images(self, sizes: Sequence[int]) -> int:
        """See `Task`."""
        return max(sizes)

    def item(self, size: int, index: int) -> Item:
        """Item `index` among those with `size` images."""
        made = make_item(self.item_seed(size, index), size, self.kind)
        return Item(
            size=size,
            index=index,
            parts=(*map(DrawnPicture, made.images), made.question),
            answer=made.answer,
            legal_answers=legal_answers(self.kind),
            needle_index=made.needle_index,
        )

    def score(self, item: Item, answer: str) -> Score:
        """See `Task`."""
        return score(answer, item.answer, item.legal_answers)

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return {"task": self.name, "seed": self.seed}

    def item_seed(self, num_images: int, index: int) -> int:
        """The seed of an item: no two items of any evaluation share one, and training meets none of them.

        Task seed, size and index have digits of their own in it, above those of `FIRST_EVALUATION_SEED`, below
        which training stays. ValueError for a size or an index without room.
        """
        if not 1 <= num_images < _SIZES_PER_SEED:
            raise ValueError(f"sizes: {num_images}, expected 1 to {_SIZES_PER_SEED - 1} images")
        if not 0 <= index < _ITEMS_PER_SIZE:
            raise ValueError(f"items: {index + 1}, expected 1 to {_ITEMS_PER_SIZE} a size")
        return FIRST_EVALUATION_SEED + (self.seed * _SIZES_PER_SEED + num_images) * _ITEMS_PER_SIZE + index
