import json
from pathlib import Path
from typing import Any

import pytest

from distill.data.bad_samples import BadSampleError
from distill.recipe import VisualHaystacksData


def entry(pos: list[str], neg: list[str], answer: str = "yes") -> dict[str, Any]:
    question = "For the image with the dog, is there a cat?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "pos_image": pos, "neg_image": neg}


@pytest.fixture
def open_entries(tmp_path: Path, open_source: Any, picture: Any) -> Any:
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / split).mkdir(parents=True)
        for number in range(1, 9):
            (tmp_path / "coco" / split / f"{number}.jpg").write_bytes(picture(number))

    def open_them(entries: list[Any], **settings: Any) -> Any:
        path = tmp_path / "visual_haystack_8.json"
        path.write_text(json.dumps(entries, indent=4))
        data = VisualHaystacksData(path=str(path), coco_folder=str(tmp_path / "coco"), **settings)
        return open_source(visual_haystacks=data)

    return open_them


def test_images_come_shuffled_before_the_official_prompt(open_entries: Any, numbers: Any) -> None:
    paths = [f"coco/train2017/{number}.jpg" for number in range(1, 9)]
    entries = [entry(paths[:1], paths[1:]), entry(paths[:2], paths[2:], "no")]
    samples = sorted(open_entries(entries).samples(0), key=lambda sample: sample.answer)
    assert [sample.answer for sample in samples] == ["no", "yes"]
    orders = [numbers(sample) for sample in samples]
    assert all(sorted(order) == list(range(1, 9)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(1, 9)]}) == 3
    again = sorted(open_entries(entries, allow_evaluation_images=True).samples(0), key=lambda sample: sample.answer)
    assert [numbers(sample) for sample in again] == orders
    assert samples[0].messages[0]["content"][-1]["text"] == (
        "You are given a set of images. Please answer the following question in Yes or No: "
        "For the image with the dog, is there a cat?"
    )


@pytest.mark.parametrize("path", ["coco/val2017/1.jpg", "val2017/1.jpg", "coco/test2017/1.jpg"])
def test_images_that_evaluate_are_refused_unless_allowed(open_entries: Any, path: str) -> None:
    with pytest.raises(BadSampleError, match=r"visual_haystack_8.json:2: .*which Visual Haystacks evaluates with"):
        open_entries([entry(["train2017/1.jpg"], [path])])


def test_the_official_files_can_be_read_on_purpose(open_entries: Any, numbers: Any) -> None:
    (sample,) = open_entries([entry(["coco/val2017/3.jpg"], [])], allow_evaluation_images=True).samples(0)
    assert numbers(sample) == [3]


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (entry([], ["train2017/1.jpg"]), "image count", "pos_image: empty"),
        (entry(["train2017/99.jpg"], []), "missing image", r"train2017/99.jpg: no such file"),
        (entry(["train2017/1.jpg"], [], "maybe"), "malformed", "answer: 'maybe', expected 'yes' or 'no'"),
        ({"pos_image": []}, "malformed", "expected .*pos_image"),
    ],
)
def test_a_bad_entry_is_named(open_entries: Any, bad: Any, reason: str, message: str) -> None:
    with pytest.raises(BadSampleError, match=f"visual_haystack_8.json:2: .*{message}") as caught:
        open_entries([bad])
    assert caught.value.reason == reason
