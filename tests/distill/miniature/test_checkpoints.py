"""The committed teacher and base student load and score what the README says."""

import pytest

from distill.checkpoint import read_laid
from distill.evaluate.local import LocalRunner
from distill.evaluate.measure import measure
from distill.evaluate.report import read_evaluation
from distill.evaluate.tasks import MiniatureTask
from distill.miniature import checkpoint_path

NAMES = ("teacher", "base")


def test_both_take_at_most_16_mib():
    files = [file for name in NAMES for file in checkpoint_path(name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_they_say_what_they_are_and_how_they_were_made(name):
    record = read_laid(checkpoint_path(name))
    assert record["kind"] == name
    assert record["recipe"]["seed"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_they_score_what_was_measured(name):
    """On fresh items; the committed curve was measured with 200 items a size, here are 40."""
    committed = {point.images: point for point in read_evaluation(checkpoint_path(name)).points}
    sizes = (1, 5, 50) if name == "base" else (1, 50, 150)
    outcomes = measure(
        LocalRunner(checkpoint_path(name)), MiniatureTask(kind="open", seed=77), sizes, 40, progress=False
    )
    for size in sizes:
        right = sum(outcome.correct for outcome in outcomes if outcome.images == size) / 40
        spread = max(0.03, (committed[size].accuracy * (1 - committed[size].accuracy) / 40) ** 0.5)
        assert right == pytest.approx(committed[size].accuracy, abs=4 * spread)


def test_the_base_student_is_near_perfect_on_few_images_and_falls_before_50():
    accuracy = {point.images: point.accuracy for point in read_evaluation(checkpoint_path("base")).points}
    assert min(accuracy[1], accuracy[5]) >= 0.95
    assert accuracy[50] <= 0.7


def test_the_teacher_keeps_its_window():
    accuracy = {point.images: point.accuracy for point in read_evaluation(checkpoint_path("teacher")).points}
    assert accuracy[150] >= 0.9


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="checkpoint: 'student', expected 'teacher' or 'base'"):
        checkpoint_path("student")
