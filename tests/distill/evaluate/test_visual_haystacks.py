import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.evaluate.scoring import haystack_words
from distill.evaluate.visual_haystacks import VisualHaystacksTask

OPENING = "You are given a set of images. Please answer the following question in Yes or No: "
NUM_IMAGES = 40
DOG, CAR = "For the image with a dog, is there a cat?", "For the image with a car, is there a person?"


def path(number: int) -> str:
    return f"coco/val2017/{number:012}.jpg"


def entry(question: str, needles: list[int], distractors: list[int], answer: str = "yes") -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "pos_image": [path(number) for number in needles],
        "neg_image": [path(number) for number in distractors],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Images whose first pixel tells their number."""
    folder = tmp_path / "coco" / "val2017"
    folder.mkdir(parents=True)
    for number in range(NUM_IMAGES):
        Image.new("RGB", (8 + number, 8), (number * 6, 0, 0)).save(folder / f"{number:012}.jpg")
    return tmp_path / "coco"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_files(**files: list[dict[str, Any]]) -> Path:
        folder = tmp_path / "single_needle"
        folder.mkdir(exist_ok=True)
        for size, entries in files.items():
            (folder / f"visual_haystack_{size.removeprefix('of_')}.json").write_text(json.dumps(entries, indent=1))
        return folder

    return write_files


@pytest.fixture
def published(write: Callable[..., Path]) -> Path:
    """Two questions about dogs, two about cars; the needles of each other's questions are among the distractors."""
    oracle = [entry(DOG, [0], []), entry(DOG, [1], [], "no"), entry(CAR, [2], []), entry(CAR, [3], [], "no")]
    fives = [
        entry(DOG, [0], [2, 4, 5, 6]),
        entry(DOG, [1], [3, 7, 8, 9], "no"),
        entry(CAR, [2], [0, 10, 11, 12]),
        entry(CAR, [3], [1, 13, 14, 15], "no"),
    ]
    return write(oracle=oracle, of_5=fives)


def shown(item: Any) -> list[int]:
    """The images' numbers by their files, in order."""
    return [int(part.path.stem) for part in item.parts[:-1]]


def test_a_published_haystack_is_asked_as_it_is(published: Path, coco: Path) -> None:
    task = VisualHaystacksTask(published, coco, seed=1)
    task.check([1, 5], 4)
    assert task.name == "visual-haystacks/single_needle"
    items = [task.item(5, index) for index in range(4)]
    assert {(tuple(sorted(shown(item))), item.answer) for item in items} == {
        ((0, 2, 4, 5, 6), "yes"),
        ((1, 3, 7, 8, 9), "no"),
        ((0, 2, 10, 11, 12), "yes"),
        ((1, 3, 13, 14, 15), "no"),
    }
    needles = {frozenset((0, 2, 4, 5, 6)): 0, frozenset((0, 2, 10, 11, 12)): 2}
    for item in items:
        assert item.question in (OPENING + DOG, OPENING + CAR)
        assert (item.size, item.num_images) == (5, 5)
        assert [image.width - 8 for image in item.images] == shown(item)
        needle = needles.get(frozenset(shown(item)))
        assert needle is None or shown(item)[item.needle_index] == needle
    assert sorted(shown(task.item(1, index))[0] for index in range(4)) == [0, 1, 2, 3]
    assert (task.source(1), task.source(5)) == ("visual_haystack_oracle.json", "visual_haystack_5.json")


def test_the_seed_alone_decides_order_and_choice(published: Path, coco: Path) -> None:
    def orders(seed: int) -> list[list[int]]:
        task = VisualHaystacksTask(published, coco, seed)
        return [shown(task.item(size, index)) for size in (3, 5, 7) for index in range(4)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    # Needles first, as the file has them, would be all zeros.
    task = VisualHaystacksTask(published, coco, seed=1)
    assert len({task.item(5, index).needle_index for index in range(4)}) > 1


def test_a_larger_size_is_built_from_other_questions_about_the_same_anchor(published: Path, coco: Path) -> None:
    task = VisualHaystacksTask(published, coco, seed=3)
    task.check([7], 4)
    assert task.source(7) == "built from visual_haystack_5.json"
    for index in range(4):
        item = task.item(7, index)
        images = shown(item)
        needle = images[item.needle_index]
        is_dog = DOG in item.question
        assert len(set(images)) == 7
        # All negatives of both dog questions, but never the needle of another dog question; and so for cars.
        assert needle in ((0, 1) if is_dog else (2, 3))
        allowed = set(range(2, 10)) if is_dog else {0, 1, *range(10, 16)}
        assert set(images) - {needle} <= allowed


def test_a_smaller_size_is_drawn_from_the_questions_own_negatives(published: Path, coco: Path) -> None:
    task = VisualHaystacksTask(published, coco, seed=3)
    own = {0: {2, 4, 5, 6}, 1: {3, 7, 8, 9}, 2: {0, 10, 11, 12}, 3: {1, 13, 14, 15}}
    assert task.source(3) == "built from visual_haystack_5.json"
    for index in range(4):
        item = task.item(3, index)
        needle = shown(item)[item.needle_index]
        assert set(shown(item)) - {needle} < own[needle]


def test_a_size_is_built_from_the_next_larger_file(write: Callable[..., Path], coco: Path) -> None:
    tens = [entry(DOG, [0], list(range(2, 11)))]
    twenties = [entry(CAR, [1], list(range(2, 21)))]
    task = VisualHaystacksTask(write(of_10=tens, of_20=twenties), coco, seed=1)
    assert [task.source(size) for size in (5, 10, 15, 20, 30)] == [
        "built from visual_haystack_10.json",
        "visual_haystack_10.json",
        "built from visual_haystack_20.json",
        "visual_haystack_20.json",
        "built from visual_haystack_20.json",
    ]
    with pytest.raises(ValueError, match=r"size 30: all questions about a car together give only 20 images"):
        task.check([30], 1)


def test_several_needles(write: Callable[..., Path], coco: Path) -> None:
    question = "For all images with a dog, do any of them contain a cat?"
    folder = write(of_8=[entry(question, [0, 1, 2], [3, 4, 5, 6, 7], "no")])
    task = VisualHaystacksTask(folder, coco, seed=1)
    item = task.item(8, 0)
    places = [shown(item).index(needle) for needle in (0, 1, 2)]
    assert task.name == "visual-haystacks/multi_needle"
    assert item.needle_index == min(places)
    assert item.depth == pytest.approx(sum(places) / 3 / 7)
    assert {0, 1, 2} < set(shown(task.item(5, 0)))
    with pytest.raises(ValueError, match=r"--items: 1, but .*visual_haystack_8.json has 0 questions for size 2"):
        task.check([2], 1)


def test_one_file_of_any_name_will_do(published: Path, coco: Path, tmp_path: Path) -> None:
    file = (published / "visual_haystack_5.json").rename(tmp_path / "mine.json")
    task = VisualHaystacksTask(file, coco, seed=1)
    assert [task.item(size, 0).num_images for size in (1, 2, 5, 7)] == [1, 2, 5, 7]


@pytest.mark.parametrize(
    ("answer", "correct", "compliant", "official"),
    [
        ("yes", True, True, 1.0),
        ("Yes.", True, True, 1.0),
        ("No", False, True, 0.0),
        ("yes and no", False, False, 1.0),
        ("Yes, there is.", False, False, 1.0),
        ("**yes**", True, True, 1.0),
        ("yes/no", False, False, 0.0),
        ("eyes", False, False, 0.0),
        ("", False, False, 0.0),
    ],
)
def test_the_official_score_and_ours(
    published: Path, coco: Path, answer: str, correct: bool, compliant: bool, official: float
) -> None:
    task = VisualHaystacksTask(published, coco, seed=1)
    item = next(item for item in (task.item(5, index) for index in range(4)) if item.answer == "yes")
    score = task.score(item, answer)
    assert (score.correct, score.compliant, score.official) == (correct, compliant, official)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        # As nltk 3.10's word_tokenize gives them, but for signs, which are no words.
        ("yes, there is", {"yes", "there", "is"}),
        ("no; yes", {"no", "yes"}),
        ("'yes'", {"yes"}),
        ("answer:yes", {"answer", "yes"}),
        ("yes-no", {"yes-no"}),
        ("yes...", {"yes"}),
        ("no—yes", {"no", "yes"}),
        ("<yes>", {"yes"}),
    ],
)
def test_words_are_told_as_the_official_scorer_tells_them(answer: str, words: set[str]) -> None:
    assert haystack_words(answer) - {""} == words


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(DOG, [], [1]), "pos_image: empty"),
        (entry(DOG, [0], [1], "maybe"), "answer: 'maybe', expected 'yes' or 'no'"),
        (entry(DOG, [0], [0, 1]), "in pos_image and in neg_image"),
        ({"pos_image": []}, r"conversations.*expected"),
    ],
)
def test_a_malformed_question_is_named(write: Callable[..., Path], coco: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"visual_haystack_2.json:2: .*{message}"):
        VisualHaystacksTask(write(of_2=[bad]), coco, seed=1)


def test_a_question_of_another_form_takes_no_foreign_distractors(write: Callable[..., Path], coco: Path) -> None:
    folder = write(of_3=[entry("Is there a dog?", [0], [1, 2]), entry("Is there a dog?", [3], [4, 5])])
    task = VisualHaystacksTask(folder, coco, seed=1)
    assert task.item(2, 0).num_images == 2
    with pytest.raises(ValueError, match="names no anchor in a known form"):
        task.item(4, 0)


def test_what_is_not_there_is_named(published: Path, coco: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--coco: .*nowhere: no such folder"):
        VisualHaystacksTask(published, tmp_path / "nowhere", seed=1)
    with pytest.raises(ValueError, match="expected a file, or a folder with visual_haystack"):
        VisualHaystacksTask(coco, coco, seed=1)
    (coco / "val2017" / "000000000004.jpg").unlink()
    task = VisualHaystacksTask(published, coco, seed=1)
    with pytest.raises(ValueError, match=r"000000000004.jpg: no such file"):
        [task.item(5, index).images for index in range(4)]
