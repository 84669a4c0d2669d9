"""The verb on a small folder in COCO's form, with real images."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.recipe import JsonlData

NAMES = {1: "person", 3: "car", 17: "cat", 18: "dog", 90: "toothbrush"}
NUM_IMAGES = 120


def write_coco(folder: Path, picture: Any, *, split: str = "train2017", first_id: int = 1) -> dict[int, set[str]]:
    """Images with one to three objects each, every tenth with none; a toothbrush is only in the second.

    Returns:
        What each image shows, by id.
    """
    rng = random.Random(0)
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations, shown = [], [], {}
    for id in range(first_id, first_id + NUM_IMAGES):
        name = f"{id:012}.jpg"
        (folder / split / name).write_bytes(picture(id % 256, format="JPEG"))
        images.append({"id": id, "file_name": name, "coco_url": f"http://images.cocodataset.org/{split}/{name}"})
        objects = [] if id % 10 == 0 else rng.sample([1, 3, 17, 18], rng.randint(1, 3))
        objects += [90] * (id == 2)
        # Several annotations of one object are one object.
        annotations += [{"image_id": id, "category_id": object} for object in [*objects, *objects[:1]]]
        shown[id] = {NAMES[object] for object in objects}
    rng.shuffle(images)
    content = {
        "info": {"year": 2017},
        "annotations": annotations,
        "images": images,
        "categories": [{"id": id, "name": name} for id, name in NAMES.items()],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return shown


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return tmp_path / "coco"


@pytest.fixture
def shown(coco: Path, picture: Any) -> dict[int, set[str]]:
    return write_coco(coco, picture)


@pytest.fixture
def make(coco: Path, tmp_path: Path) -> Any:
    """Runs the verb; returns its exit code and the lines of its file."""

    def run(*arguments: str, out: str = "out.jsonl") -> tuple[int, list[Any]]:
        path = tmp_path / out
        defaults = ["--min-images", "3", "--count", "60", "--sizes", "3-5"]
        code = main(["data", "haystacks", "--coco", str(coco), "--out", str(path), *defaults, *arguments])
        return code, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return run


def parts(line: Any) -> tuple[list[int], str, str]:
    """Image ids, question and answer."""
    user, assistant = line["messages"]
    *images, text = user["content"]
    paths = [part["image_url"]["url"] for part in images]
    assert all(re.fullmatch(r"train2017/\d{12}\.jpg", path) for path in paths)
    opening, _, question = text["text"].partition(": ")
    assert opening == "You are given a set of images. Please answer the following question in Yes or No"
    return [int(Path(path).stem) for path in paths], question, assistant["content"]


def test_a_single_needle_has_the_anchor_and_the_answer(make: Any, shown: dict[int, set[str]]) -> None:
    code, lines = make()
    assert code == 0
    positions = Counter[int]()
    for line in lines:
        ids, question, answer = parts(line)
        match = re.fullmatch(r"For the image with the (\w+), is there a (\w+)\?", question)
        assert match is not None
        anchor, target = match.groups()
        assert len(set(ids)) == len(ids)
        (needle,) = [id for id in ids if anchor in shown[id]]
        assert (target in shown[needle]) == (answer == "yes")
        positions[ids.index(needle)] += 1
    assert set(positions) == {0, 1, 2, 3, 4}


def test_several_needles_are_asked_about_together(make: Any, shown: dict[int, set[str]]) -> None:
    code, lines = make("--needles", "2", "3", "--count", "120")
    assert code == 0
    seen = set()
    for line in lines:
        ids, question, answer = parts(line)
        match = re.fullmatch(r"For all images with the (\w+), do (all|any) of them contain the (\w+)\?", question)
        assert match is not None
        anchor, kind, target = match.groups()
        needles = [id for id in ids if anchor in shown[id]]
        hits = [target in shown[id] for id in needles]
        assert ({"all": all, "any": any}[kind](hits)) == (answer == "yes")
        seen.add((len(needles), kind, answer, sum(hits)))
    expected = {
        (needles, kind, answer, hits)
        for needles in (2, 3)
        for kind in ("all", "any")
        for answer in ("yes", "no")
        for hits in range(needles + 1)
        if (answer == "yes") == (hits == needles if kind == "all" else hits > 0)
    }
    assert seen == expected


@pytest.mark.parametrize(("count", "needles"), [(60, [1]), (61, [1, 2]), (7, [1])])
@pytest.mark.usefixtures("shown")
def test_sizes_and_answers_are_balanced(make: Any, count: int, needles: list[int]) -> None:
    code, lines = make("--count", str(count), "--needles", *map(str, needles))
    assert code == 0
    answers = Counter(parts(line)[2] for line in lines)
    assert answers.total() == count
    assert abs(answers["yes"] - answers["no"]) <= 1
    sizes = Counter(len(parts(line)[0]) for line in lines)
    assert set(sizes) == {3, 4, 5}
    assert max(sizes.values()) - min(sizes.values()) <= len(needles)
    for size in sizes:
        cell = Counter(parts(line)[2] for line in lines if len(parts(line)[0]) == size)
        assert abs(cell["yes"] - cell["no"]) <= len(needles)


@pytest.mark.usefixtures("shown")
def test_the_question_alone_tells_nothing_of_the_answer(make: Any) -> None:
    """Within each pair of objects about half of the answers are yes."""
    code, lines = make("--count", "1200")
    assert code == 0
    answers: dict[str, Counter[str]] = {}
    for line in lines:
        _, question, answer = parts(line)
        answers.setdefault(question, Counter())[answer] += 1
    assert len(answers) == 12
    assert all(0.3 < each["yes"] / each.total() < 0.7 for each in answers.values())


@pytest.mark.usefixtures("shown")
def test_the_same_arguments_write_the_same_file(make: Any, tmp_path: Path) -> None:
    for out, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert make("--seed", seed, out=out)[0] == 0
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


@pytest.mark.usefixtures("shown")
def test_it_says_what_is_in_the_file_and_what_was_left_out(
    make: Any, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for id in (1, 2):
        (coco / "train2017" / f"{id:012}.jpg").unlink()
    assert make("--needles", "1", "2", "--count", "60")[0] == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "used: 106 images, 12 pairs of anchor and target",
        "left out: 2 images that are not in train2017/",
        "left out: 12 images without any annotation",
        "left out: 8 pairs seen together in fewer than 3 images",
        "images  needles  questions     yes      no",
        "     3        1         10       5       5",
        "     3        2         10       5       5",
        "     4        1         10       5       5",
        "     4        2         10       5       5",
        "     5        1         10       5       5",
        "     5        2         10       5       5",
        "   all                  60      30      30",
        f"wrote {tmp_path / 'out.jsonl'}; train on it with: "
        f"data: {{jsonl: {{path: {tmp_path / 'out.jsonl'}, image_folder: {coco}}}, ...}}",
    ]


@pytest.mark.usefixtures("shown")
def test_what_it_writes_trains(make: Any, coco: Path, tmp_path: Path, open_source: Any) -> None:
    assert make()[0] == 0
    source = open_source(jsonl=JsonlData(path=str(tmp_path / "out.jsonl"), image_folder=str(coco)))
    samples = [sample for step in range(20) for sample in source.samples(step)]
    assert len(samples) == 60
    assert {len(sample.images) for sample in samples} == {3, 4, 5}


def rename_annotations(coco: Path) -> list[str]:
    """A file whose name says what it is."""
    path = coco / "annotations" / "instances_val2017.json"
    (coco / "annotations" / "instances_train2017.json").rename(path)
    return ["--annotations", str(path)]


def disguise_annotations(coco: Path) -> list[str]:
    """The annotations of test2017 under the name of train2017."""
    path = coco / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("train2017", "test2017"))
    return []


def use_older_split(coco: Path) -> list[str]:
    """COCO 2014's training images are partly validation images of 2017."""
    path = coco / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("/train2017/", "/train2014/"))
    return []


def forget_urls(coco: Path) -> None:
    path = coco / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("coco_url", "url"))


def keep_evaluation_images(coco: Path) -> list[str]:
    """Without URLs, an image that lies in val2017/ too."""
    forget_urls(coco)
    (coco / "val2017").mkdir()
    (coco / "val2017" / f"{5:012}.jpg").write_bytes(b"")
    return []


def keep_evaluation_list(coco: Path) -> list[str]:
    """Without URLs, an image that COCO's list of test images names."""
    forget_urls(coco)
    listed = {"images": [{"id": 5, "file_name": "another.jpg"}], "categories": []}
    (coco / "annotations" / "image_info_test2017.json").write_text(json.dumps(listed))
    return []


def link_to_evaluation_images(coco: Path) -> list[str]:
    (coco / "train2017").rename(coco.parent / "val2017")
    (coco / "train2017").symlink_to(coco.parent / "val2017")
    return []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename_annotations, "instances_val2017.json: annotations of val2017, which evaluates"),
        (disguise_annotations, r"instances_train2017.json:1: image http\S+test2017\S+, expected images of train2017"),
        (use_older_split, r"instances_train2017.json:1: image http\S+train2014\S+, expected images of train2017"),
        (keep_evaluation_images, "val2017: has image 000000000005.jpg, which the annotations of train2017 list too"),
        (keep_evaluation_list, "image_info_test2017.json: has image another.jpg, which the annotations"),
        (link_to_evaluation_images, "train2017: leads to .*val2017, which evaluates"),
    ],
)
@pytest.mark.usefixtures("shown")
def test_images_that_evaluate_are_refused(
    make: Any, coco: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    assert make(*spoil(coco)) == (1, [])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["--annotations", "absent.json"]])
def test_without_annotations_nothing_is_written(make: Any, arguments: list[str]) -> None:
    assert make(*arguments) == (1, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "2", "--needles", "3"], "--sizes: 2, expected at least as many images as needles, 3"),
        (["--min-images", "500"], "no pair of objects can be asked about"),
        (["--sizes", "500"], "leaves fewer than 499 images without it"),
    ],
)
@pytest.mark.usefixtures("shown")
def test_impossible_haystacks_are_refused(
    make: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert make(*arguments) == (1, [])
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("shown")
def test_a_file_in_the_way_is_kept(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.jsonl").write_text("{}")
    assert make() == (1, [{}])
    assert "exists, expected a new file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--sizes", "0"], ["--sizes", "5-3"], ["--sizes", "many"], ["--count", "0"], ["--needles", "0"]]
)
def test_wrong_arguments_are_refused(make: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make(*arguments)
    assert caught.value.code == 2
