"""MM-NIAH and MMLongBench's haystacks from files in their published forms."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.evaluate.mm_niah import MmNiahTask
from distill.evaluate.mmlongbench import MmLongBenchTask

ENDING = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (8 + number, 8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, list[Any]], Path]:
    def write_lines(name: str, records: list[Any]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return tmp_path / name

    return write_lines


def niah(answer: Any, *, length: int = 1500, num_images: int = 2, **changes: Any) -> dict[str, Any]:
    meta = {"placed_depth": 0.5, "context_length": length, "choices": None, "choices_image_path": None}
    record = {
        "images_list": [f"{number}.png" for number in range(num_images)],
        "context": "Text.</s>" + "<image>more" * num_images,
        "question": "What is it?",
        "answer": answer,
        "meta": meta | {key: value for key, value in changes.items() if key in meta},
    }
    return record | {key: value for key, value in changes.items() if key in record}


def texts(item: Any) -> list[str]:
    """The item's parts, images by their files' names."""
    return [part if isinstance(part, str) else part.path.name for part in item.parts]


def test_an_open_question_keeps_its_images_in_the_text(write: Any, images: Path) -> None:
    task = MmNiahTask(write("retrieval-text.jsonl", [niah("the Seine")]), images, seed=1)
    item = task.item(1000, 0)
    assert task.name == "mm-niah/retrieval-text"
    assert texts(item) == ["Text.", "0.png", "more", "1.png", "more\nWhat is it?" + ENDING]
    assert [part["type"] for part in item.messages()[0]["content"]] == ["text", "image", "text", "image", "text"]
    assert (item.num_images, item.depth, item.max_new_tokens) == (2, 0.5, 32)
    scores = {answer: task.score(item, answer) for answer in ("Seine.", "It is the Seine", "Rhine", "")}
    assert [score.correct for score in scores.values()] == [True, False, False, False]
    assert [score.official for score in scores.values()] == [1.0, 1.0, 0.0, 0.0]
    assert [score.compliant for score in scores.values()] == [True, True, True, False]


@pytest.mark.parametrize(
    ("answer", "correct", "compliant", "official"),
    [
        ("B", True, True, 1.0),
        ("b.", True, True, 1.0),
        ("**B**", True, True, 1.0),
        ("1", False, False, 1.0),
        ("The answer is B.", False, False, 1.0),
        ("A", False, True, 0.0),
        ("A or B", False, False, 0.0),
        ("None", False, False, 0.0),
    ],
)
def test_a_choice(write: Any, images: Path, answer: str, correct: bool, compliant: bool, official: float) -> None:
    task = MmNiahTask(write("retrieval-image.jsonl", [niah(1, choices=["a dog", "a cat"])]), images, seed=1)
    item = task.item(1000, 0)
    assert texts(item)[-1].endswith(
        "What is it?\nA. a dog\nB. a cat\nAnswer with the option's letter from the given choices directly."
    )
    score = task.score(item, answer)
    assert (score.correct, score.compliant, score.official) == (correct, compliant, official)


def test_choices_that_are_images_come_last(write: Any, images: Path) -> None:
    record = niah(0, choices_image_path=["4.png", "5.png"])
    item = MmNiahTask(write("reasoning-image.jsonl", [record]), images, seed=1).item(1000, 0)
    assert texts(item)[3:8] == ["1.png", "more\nWhat is it?\nA. ", "4.png", "\nB. ", "5.png"]
    assert item.num_images == 4


@pytest.mark.parametrize(
    ("answer", "correct", "compliant", "official"),
    [
        ("[1, 0, 2]", True, True, 1.0),
        ("[1,2,2]", False, True, 2 / 3),
        ("```json\n[1, 0, 2]\n```", False, False, 1.0),
        ("3", False, False, 0.0),
        ("three", False, False, 0.0),
    ],
)
def test_a_count(write: Any, images: Path, answer: str, correct: bool, compliant: bool, official: float) -> None:
    task = MmNiahTask(write("counting-image.jsonl", [niah([1, 0, 2], placed_depth=[0.2, 0.4])]), images, seed=1)
    item = task.item(1000, 0)
    assert (item.depth, item.max_new_tokens) == (pytest.approx(0.3), 96)
    score = task.score(item, answer)
    assert (score.correct, score.compliant, score.official) == (correct, compliant, pytest.approx(official))


def test_documents_are_grouped_by_the_official_lengths(write: Any, images: Path) -> None:
    lengths = [(900, 1), (1000, 1), (1999, 2), (2000, 3), (70_000, 5), (64_000, 6)]
    records = [niah("x", length=length, num_images=number) for length, number in lengths]
    task = MmNiahTask(write("retrieval-text.jsonl", records), images, seed=1)
    assert task.default_sizes == (1000, 2000, 64_000)
    assert sorted(task.item(1000, index).num_images for index in range(2)) == [1, 2]
    task.check([1000, 2000, 64_000], 1)
    assert task.most_images([1000, 2000]) == 3
    with pytest.raises(ValueError, match="--items: 2, but there are 1 of size 2000"):
        task.check([2000], 2)
    with pytest.raises(ValueError, match="--sizes: 4000, expected sizes of these files: 1000 2000 64000"):
        task.check([4000], 1)


def test_lengths_with_equally_many_images_cannot_be_told_apart(write: Any, images: Path) -> None:
    records = [niah("x", length=1000), niah("x", length=2000)]
    task = MmNiahTask(write("retrieval-text.jsonl", records), images, seed=1)
    with pytest.raises(ValueError, match="prompts of 2000 have 2 images on average, as have those of 1000; leave one"):
        task.check([1000, 2000], 1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (niah(2, choices=["a", "b"]), "answer: 2, expected the index of one of 2 choices"),
        (niah("x", images_list=["0.png"]), "2 times <image> for 1 images"),
        (niah(3), "answer: 3, expected text, or a list of counts"),
        ({"context": ""}, "expected a question in the form of MM-NIAH"),
    ],
)
def test_a_malformed_line_of_mm_niah_is_named(write: Any, images: Path, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"retrieval-text.jsonl:2: .*{message}"):
        MmNiahTask(write("retrieval-text.jsonl", [niah("x"), record]), images, seed=1)


def test_another_file_is_not_taken_for_mm_niah(write: Any, images: Path) -> None:
    with pytest.raises(ValueError, match=r"--path: other.jsonl, expected a file of MM-NIAH: retrieval, counting"):
        MmNiahTask(write("other.jsonl", [niah("x")]), images, seed=1)


def haystack(answer: str, **changes: Any) -> dict[str, Any]:
    question = "For the image with a dog, is there a cat?"
    return {"id": "1", "question": question, "answer": answer, "ctxs": ["0.png", "1.png"], "depth": 0.6} | changes


VH_FILE = "vh_single_test_1000_K8_dep6.jsonl"


def test_mmlongbench_asks_as_published(write: Any, images: Path) -> None:
    task = MmLongBenchTask(write(VH_FILE, [haystack("yes")]), images, seed=1)
    item = task.item(8192, 0)
    assert (task.name, task.default_sizes, task.source(8192)) == ("mmlongbench/vh_single", (8192,), VH_FILE)
    assert texts(item) == [
        "You are given a set of images. Please answer the question in Yes or No based on the given images. Write your "
        "answer in the following format:\nAnswer: [answer]\n\n",
        "0.png",
        "\n",
        "1.png",
        "\n\nQuestion: For the image with a dog, is there a cat?",
    ]
    assert (item.depth, item.num_images) == (0.6, 2)


@pytest.mark.parametrize(
    ("answer", "correct", "compliant", "official"),
    [
        ("Answer: Yes", True, True, 1.0),
        ("yes", True, True, 1.0),
        ("No, yes", False, False, 1.0),
        ("yes, no", False, False, 0.0),
        # No word at all: the first line's guess is no.
        ("I cannot tell", False, False, 0.0),
    ],
)
def test_mmlongbenchs_score_and_ours(
    write: Any, images: Path, answer: str, correct: bool, compliant: bool, official: float
) -> None:
    task = MmLongBenchTask(write(VH_FILE, [haystack("yes")]), images, seed=1)
    score = task.score(task.item(8192, 0), answer)
    assert (score.correct, score.compliant, score.official) == (correct, compliant, official)


def test_mmlongbenchs_other_files_are_refused(write: Any, images: Path) -> None:
    for name in ("vh_multi_test_1000_K8_dep3.jsonl", "retrieval-image_test_K8_dep6.jsonl"):
        with pytest.raises(ValueError, match=f"{name}, expected vh_single_"):
            MmLongBenchTask(write(name, [haystack("yes")]), images, seed=1)
    with pytest.raises(ValueError, match="no such file, expected vh_single_"):
        MmLongBenchTask(images, images, seed=1)
    with pytest.raises(ValueError, match=rf"{VH_FILE}:1: .*depth: 3, expected 0 to 1"):
        MmLongBenchTask(write(VH_FILE, [haystack("no", depth=3)]), images, seed=1)
