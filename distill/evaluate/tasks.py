"""What is asked: the items of a task, the same ones for every model, runner and day."""

from dataclasses import dataclass

from distill.miniature.items import FIRST_EVALUATION_SEED, Item, Kind, legal_answers, make_item

_SIZES_PER_SEED = 10_000
_ITEMS_PER_SIZE = 10_000


@dataclass(frozen=True, kw_only=True)
class MiniatureTask:
    """Haystacks of the miniature world."""

    kind: Kind
    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}, expected 0 or more")

    @property
    def name(self) -> str:
        """The task's name in reports: "miniature/open" or "miniature/yes_no"."""
        return f"miniature/{self.kind}"

    @property
    def legal_answers(self) -> tuple[str, ...]:
        """Every answer that complies with a question of this task."""
        return legal_answers(self.kind)

    def item(self, num_images: int, index: int) -> Item:
        """Item `index` among those with `num_images` images."""
        return make_item(self.item_seed(num_images, index), num_images, self.kind)

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
