import itertools

import pytest

from distill.evaluate.tasks import MiniatureTask
from distill.miniature.items import FIRST_EVALUATION_SEED, Kind, make_item


def test_no_two_items_share_a_seed_and_none_trains() -> None:
    places = itertools.product((0, 1, 2), (1, 2, 9_999), (0, 1, 9_999))
    seeds = [MiniatureTask(kind="open", seed=seed).item_seed(size, index) for seed, size, index in places]
    assert len(set(seeds)) == 27
    assert min(seeds) >= FIRST_EVALUATION_SEED


@pytest.mark.parametrize("kind", ["open", "yes_no"])
def test_items_are_the_same_every_time_and_their_answers_legal(kind: Kind) -> None:
    task = MiniatureTask(kind=kind, seed=7)
    first, again, other = task.item(5, 3), task.item(5, 3), task.item(5, 4)
    assert first == again
    made = make_item(task.item_seed(5, 3), 5, kind)
    assert (first.images, first.question, first.answer) == (made.images, made.question, made.answer)
    assert (first.size, first.index, first.needle_index, first.num_images) == (5, 3, made.needle_index, 5)
    assert [image.tobytes() for image in first.images] != [image.tobytes() for image in other.images]
    assert len(first.images) == 5
    assert first.legal_answers is not None
    assert first.answer in first.legal_answers
    assert task.name == f"miniature/{kind}"


@pytest.mark.parametrize(
    ("size", "index", "message"),
    [(0, 0, "sizes: 0"), (10_000, 0, "sizes: 10000"), (1, 10_000, "items: 10001"), (1, -1, "items: 0")],
)
def test_sizes_and_items_out_of_range(size: int, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiniatureTask(kind="open", seed=1).check([size], index + 1)


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(ValueError, match="seed: -1"):
        MiniatureTask(kind="open", seed=-1)
