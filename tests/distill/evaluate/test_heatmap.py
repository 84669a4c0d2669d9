from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.evaluate.heatmap import count_by_depth, draw_heatmap
from distill.evaluate.measure import Outcome


def outcome(images: int, needle_index: int, correct: bool = True) -> Outcome:
    return Outcome(
        images=images,
        index=0,
        needle_index=needle_index,
        truth="red square",
        answer="red square",
        correct=correct,
        compliant=True,
        prompt_tokens=40,
    )


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def share(path: Path, colour: tuple[int, int, int]) -> float:
    """Of all pixels, those next to this colour."""
    return float((np.abs(pixels(path) - colour).max(axis=2) <= 4).mean())


GROUND, NO_ANSWER_RIGHT = (228, 228, 228), (68, 1, 84)


@pytest.mark.parametrize(
    ("images", "needle_index", "bin_"),
    [(1, 0, 0), (2, 0, 0), (2, 1, 4), (5, 1, 1), (5, 2, 2), (5, 4, 4), (11, 1, 0), (11, 2, 1), (101, 99, 4)],
)
def test_depth_is_the_index_over_the_last(images: int, needle_index: int, bin_: int) -> None:
    sizes, correct_SK, items_SK = count_by_depth([outcome(images, needle_index)], num_bins=5)
    assert sizes == [images]
    assert np.flatnonzero(items_SK[0]).tolist() == [bin_]
    assert correct_SK.tolist() == items_SK.tolist()


def test_a_task_may_say_where_the_needle_is_and_what_an_item_counts_under() -> None:
    outcomes = [
        replace(outcome(images, 0), depth=depth, size=8000) for images, depth in ((10, 0.0), (12, 0.5), (12, 1.0))
    ]
    sizes, _, items_SK = count_by_depth(outcomes, num_bins=4)
    assert sizes == [11]
    assert items_SK.tolist() == [[1, 0, 1, 1]]


def test_answers_are_counted_by_size_and_bin() -> None:
    outcomes = [outcome(3, 0, False), outcome(3, 2), outcome(3, 2, False), outcome(2, 1), outcome(3, 1)]
    sizes, correct_SK, items_SK = count_by_depth(outcomes, num_bins=2)
    assert sizes == [2, 3]
    assert items_SK.tolist() == [[0, 1], [1, 3]]
    assert correct_SK.tolist() == [[0, 1], [0, 2]]


def test_bins_without_an_item_do_not_look_like_an_accuracy(tmp_path: Path) -> None:
    every = [outcome(11, index, False) for index in range(11)]
    draw_heatmap(tmp_path / "full.png", "base", every)
    draw_heatmap(tmp_path / "half.png", "base", every[:5])
    assert share(tmp_path / "full.png", GROUND) < 0.01
    assert share(tmp_path / "half.png", GROUND) > 0.1
    assert share(tmp_path / "half.png", NO_ANSWER_RIGHT) == pytest.approx(
        share(tmp_path / "full.png", NO_ANSWER_RIGHT) / 2, abs=0.05
    )


def test_one_image_and_150_are_drawn(tmp_path: Path) -> None:
    draw_heatmap(tmp_path / "map.png", "odd", [outcome(1, 0), *(outcome(150, index) for index in range(0, 150, 7))])
    height, width, _ = pixels(tmp_path / "map.png").shape
    assert min(height, width) > 500
