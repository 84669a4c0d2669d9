"""The exported folder as lmms-eval reads it: task files, a module found by its path, data through `datasets`."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from PIL import Image

from distill.cli import main
from distill.evaluate.tasks import MiniatureTask
from distill.evaluate.visual_haystacks import VisualHaystacksTask


class TaskLoader(yaml.SafeLoader):
    """Reads `!function module.name` as a pair."""


TaskLoader.add_constructor("!function", lambda loader, node: tuple(loader.construct_scalar(node).split(".")))


def read_tasks(folder: Path) -> dict[str, Any]:
    return {path.stem: TaskLoader(path.read_text()).get_single_data() for path in sorted(folder.glob("*.yaml"))}


def read_docs(task: dict[str, Any], cache: Path) -> list[Any]:
    files = task["dataset_kwargs"]["data_files"]
    return list(datasets.load_dataset(task["dataset_path"], data_files=files, cache_dir=str(cache))[task["test_split"]])


def load_utils(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, in a process that has no `distill`."""
    for name in [name for name in sys.modules if name.split(".")[0] == "distill"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("utils", folder / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the annotations of a class.
    monkeypatch.setitem(sys.modules, "utils", module)
    spec.loader.exec_module(module)
    return module


def test_the_same_prompts_and_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tasks"
    assert (
        main(["evaluate", "--export-lmms-eval", str(folder), "--sizes", "1", "3", "--items", "2", "--seed", "4"]) == 0
    )
    tasks = read_tasks(folder)
    assert [(name, task["task"], task["tag"]) for name, task in tasks.items()] == [
        (name, name, "laid_miniature_open") for name in ("laid_miniature_open_1", "laid_miniature_open_3")
    ]
    task = tasks["laid_miniature_open_3"]
    docs = read_docs(task, tmp_path / "cache")
    items = [MiniatureTask(kind="open", seed=4).item(3, index) for index in range(2)]
    utils = load_utils(folder, monkeypatch)
    for name in ("doc_to_visual", "doc_to_text", "doc_to_messages", "process_results"):
        assert task[name] == ("utils", name)
        assert callable(getattr(utils, name))
    assert task["generation_kwargs"] == {"max_new_tokens": 16, "temperature": 0, "do_sample": False}
    assert len(docs) == 2
    for doc, item in zip(docs, items, strict=True):
        [message] = utils.doc_to_messages(doc)
        *images, text = message["content"]
        assert [image["url"].tobytes() for image in images] == [image.tobytes() for image in item.images]
        assert text == {"type": "text", "text": item.question}
        assert (utils.doc_to_text(doc), doc[task["doc_to_target"]]) == (item.question, item.answer)
        right = item.answer.title() + "."
        assert utils.process_results(doc, [right]) == {"accuracy": 1.0, "compliance": 1.0}
        assert utils.process_results(doc, ["no idea"]) == {"accuracy": 0.0, "compliance": 0.0}
    assert [metric["metric"] for metric in task["metric_list"]] == ["accuracy", "compliance"]


def test_visual_haystacks_with_its_official_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco, file, folder = tmp_path / "coco", tmp_path / "mine.json", tmp_path / "tasks"
    coco.mkdir()
    for number in range(4):
        Image.new("L", (9, 8), number * 60).save(coco / f"{number}.jpg")
    turns = [{"value": "For the image with a dog, is there a cat?"}, {"value": "yes"}]
    record = {"conversations": turns, "pos_image": ["0.jpg"], "neg_image": ["1.jpg", "2.jpg", "3.jpg"]}
    file.write_text(json.dumps([record]))
    files = ["--task", "visual-haystacks", "--path", str(file), "--coco", str(coco)]
    assert main(["evaluate", "--export-lmms-eval", str(folder), *files, "--sizes", "4", "--items", "1"]) == 0
    task = read_tasks(folder)["laid_visual_haystacks_single_needle_4"]
    [doc] = read_docs(task, tmp_path / "cache")
    item = VisualHaystacksTask(file, coco, seed=1).item(4, 0)
    utils = load_utils(folder, monkeypatch)
    assert [image.tobytes() for image in utils.doc_to_visual(doc)] == [image.tobytes() for image in item.images]
    assert utils.process_results(doc, ["yes and no"]) == {"accuracy": 0.0, "compliance": 0.0, "official": 1.0}
    assert [metric["metric"] for metric in task["metric_list"]] == ["accuracy", "compliance", "official"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student"], "asks no model, leave student out"),
        (["--items", "0"], "--items: 0"),
    ],
)
def test_an_export_that_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["evaluate", "--export-lmms-eval", str(tmp_path / "tasks"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_neither_model_nor_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 1
    assert "CHECKPOINT_OR_URL: missing" in capsys.readouterr().err
