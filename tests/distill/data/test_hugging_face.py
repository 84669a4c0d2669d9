"""With the package `datasets` on folders that it wrote itself; no network."""

import sys
from pathlib import Path
from typing import Any

import pytest

from distill.data.bad_samples import BadSampleError
from distill.recipe import HuggingFaceData

ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}


def question(*types: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, "text": "hi" if kind == "text" else None} for kind in types]}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    package.disable_progress_bars()
    return package


@pytest.fixture
def rows(tmp_path: Path, picture: Any) -> list[dict[str, Any]]:
    paths = []
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        paths.append(str(tmp_path / f"{number}.png"))
    return [
        {"messages": [question("image", "text", "image"), ANSWER], "images": paths[:2]},
        {"messages": [question("text"), ANSWER], "images": []},
        {"messages": [question("text", "image"), ANSWER], "images": paths[2:]},
    ]


def make_dataset(datasets: Any, rows: list[dict[str, Any]]) -> Any:
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize("layout", ["saved", "saved splits", "parquet"])
def test_rows_with_images_in_the_table_or_beside_it(
    datasets: Any, rows: Any, open_source: Any, numbers: Any, tmp_path: Path, layout: str
) -> None:
    dataset = make_dataset(datasets, rows)
    folder = tmp_path / "data"
    if layout == "parquet":
        folder.mkdir()
        dataset.to_parquet(folder / "train.parquet")
    else:
        (datasets.DatasetDict(train=dataset) if layout == "saved splits" else dataset).save_to_disk(folder)
    source = open_source(hugging_face=HuggingFaceData(path=str(folder)))
    samples = sorted(source.samples(0), key=lambda sample: sample.name)
    assert [sample.name for sample in samples] == [f"{folder}[train]:{row}" for row in (1, 2, 3)]
    assert [numbers(sample) for sample in samples] == [[1, 2], [], [3]]
    assert [sample.answer for sample in samples] == ["yes"] * 3
    assert [part["type"] for part in samples[0].messages[0]["content"]] == ["image", "text", "image"]


def test_in_messages_of_plain_text_images_come_first(
    datasets: Any, rows: Any, open_source: Any, numbers: Any, tmp_path: Path
) -> None:
    turns = [("system", "be brief"), ("user", "what?"), ("assistant", "a"), ("user", "and?"), ("assistant", "b")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "images": rows[0]["images"]}
    make_dataset(datasets, [row]).save_to_disk(tmp_path / "data")
    (sample,) = open_source(hugging_face=HuggingFaceData(path=str(tmp_path / "data"))).samples(0)
    assert numbers(sample) == [1, 2]
    assert [part["type"] for part in sample.messages[1]["content"]] == ["image", "image", "text"]
    assert sample.answer == "b"


def test_a_bad_row_is_named(datasets: Any, rows: Any, open_source: Any, tmp_path: Path) -> None:
    rows[1]["images"] = rows[0]["images"]
    make_dataset(datasets, rows).save_to_disk(tmp_path / "data")
    with pytest.raises(BadSampleError, match=r"data\[train\]:2: 0 image placeholders for 2 images"):
        open_source(hugging_face=HuggingFaceData(path=str(tmp_path / "data")))


@pytest.mark.parametrize("place", ["column", "part"])
def test_a_row_with_a_video_is_refused(datasets: Any, rows: Any, open_source: Any, tmp_path: Path, place: str) -> None:
    if place == "column":
        rows = [row | {"videos": ["1.mp4"] if number == 1 else []} for number, row in enumerate(rows)]
    else:
        rows[1]["messages"] = [question("video", "text"), ANSWER]
    make_dataset(datasets, rows).save_to_disk(tmp_path / "data")
    with pytest.raises(BadSampleError, match=r"data\[train\]:2: .*video.*: video: not supported") as caught:
        open_source(hugging_face=HuggingFaceData(path=str(tmp_path / "data")))
    assert caught.value.reason == "video"


def test_images_of_the_table_are_not_decoded_before_their_header_is_checked(
    datasets: Any, rows: Any, open_source: Any, tmp_path: Path
) -> None:
    from distill.recipe import ImagesConfig

    make_dataset(datasets, rows).save_to_disk(tmp_path / "data")
    with pytest.raises(BadSampleError, match=r"data\[train\]:1: .*expected at most 5 pixels, its header says 4x3"):
        open_source(hugging_face=HuggingFaceData(path=str(tmp_path / "data")), images=ImagesConfig(max_pixels=5))


def test_other_columns_are_refused(datasets: Any, open_source: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"question": "?"}]).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="columns question, expected messages and images"):
        open_source(hugging_face=HuggingFaceData(path=str(tmp_path / "data")))


def test_without_the_package_the_error_names_the_extra(open_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'laid\[datasets\]'"):
        open_source(hugging_face=HuggingFaceData(path="anything"))
