import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.checkpoint import read_laid
from distill.evaluate import command
from distill.evaluate.report import read_evaluation
from distill.evaluate.tasks import MiniatureTask
from server.checkpoint import read_checkpoint


def distill(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="distill")
    command.add_parser(parser.add_subparsers(required=True))
    chosen = parser.parse_args(["evaluate", *map(str, arguments)])
    return int(chosen.run(chosen))


@pytest.fixture
def checkpoint(random_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_checkpoint, tmp_path / "student"))


def test_a_checkpoint_gets_its_window_where_the_gateway_reads_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert distill(checkpoint, "--sizes", 3, 1, "--items", 4, "--kind", "yes_no", "--out", out) == 0
    written = ["answers.jsonl", "curve.png", "heatmap.png", "report.json", "run.json"]
    assert sorted(path.name for path in out.iterdir()) == written
    assert "miniature/yes_no, 4 items a size" in capsys.readouterr().out

    report = json.loads((out / "report.json").read_text())
    assert report["target"] == {"checkpoint": str(checkpoint)}
    laid = read_laid(checkpoint)
    assert laid is not None
    assert laid["kind"] == "base"
    assert laid["effective_window"] == report["effective_window"]
    assert [point["images"] for point in report["effective_window"]["curve"]] == [1, 3]

    shown = read_checkpoint(checkpoint).effective_window
    assert shown is not None
    assert (shown.task, shown.threshold, shown.confidence) == ("miniature/yes_no", 0.6, 0.95)


def test_visual_haystacks_in_the_checkpoint_and_in_the_report(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, file, out = tmp_path / "coco", tmp_path / "visual_haystack_3.json", tmp_path / "out"
    coco.mkdir()
    for number in range(12):
        # Photographs come in all shapes.
        Image.new("RGB", (30 + 9 * number, 60), (20 * number, 0, 0)).save(coco / f"{number}.jpg")
    turns = [{"value": "For the image with a dog, is there a cat?"}, {"value": "yes"}]
    records = [
        {"conversations": turns, "pos_image": [f"{n}.jpg"], "neg_image": [f"{n + 1}.jpg", f"{n + 2}.jpg"]}
        for n in range(0, 12, 3)
    ]
    file.write_text(json.dumps(records))
    files = ("--task", "visual-haystacks", "--path", file, "--coco", coco)
    assert distill(checkpoint, *files, "--sizes", 1, 3, 5, "--items", 4, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "visual-haystacks/single_needle, 4 items a size" in printed
    assert "official score 0.0 %" in printed

    report = json.loads((out / "report.json").read_text())
    assert report["official"]["by_size"] == [{"size": size, "score": 0.0} for size in (1, 3, 5)]
    built = "built from visual_haystack_3.json"
    assert report["sources"] == {"1": built, "3": "visual_haystack_3.json", "5": built}
    shown = read_checkpoint(checkpoint).effective_window
    assert shown is not None
    assert (shown.task, shown.threshold, shown.confidence) == ("visual-haystacks/single_needle", 0.6, 0.95)


def test_the_rest_of_laid_json_stays(checkpoint: Path, tmp_path: Path) -> None:
    before = {"format": 1, "kind": "student", "recipe": {"seed": 7}, "effective_window": None}
    (checkpoint / "laid.json").write_text(json.dumps(before))
    distill(checkpoint, "--sizes", 1, "--items", 2, "--out", tmp_path / "out")
    after = read_laid(checkpoint)
    assert after is not None
    assert after.pop("effective_window")["items_per_size"] == 2
    assert after == {"format": 1, "kind": "student", "recipe": {"seed": 7}}


def test_no_write_leaves_the_checkpoint_alone(checkpoint: Path, tmp_path: Path) -> None:
    distill(checkpoint, "--sizes", 1, "--items", 2, "--no-write", "--out", tmp_path / "out")
    assert read_laid(checkpoint) is None
    assert read_evaluation(tmp_path / "out" / "report.json").items_per_size == 2


def test_a_url_against_a_base(
    openai_server: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = MiniatureTask(kind="open", seed=5)
    asked = ("--sizes", 1, 2, 4, "--items", 10, "--seed", 5)
    for size in (1, 2, 4):
        for index in range(10):
            item = task.item(size, index)
            openai_server.learn(item, item.answer.title() if size < 4 or index < 2 else "no idea")
    student = tmp_path / "student.report"
    distill(openai_server.url, *asked, "--out", student, "--write-to", checkpoint)
    measured = read_evaluation(checkpoint)
    assert measured == read_evaluation(student / "report.json")
    assert [point.accuracy for point in measured.points] == [1.0, 1.0, 0.2]
    assert [point.compliance for point in measured.points] == [1.0, 1.0, 0.2]
    assert [point.prompt_tokens for point in measured.points] == [36, 42, 54]
    assert measured.windows[1].images == pytest.approx(3)
    report = json.loads((student / "report.json").read_text())
    assert report["target"] == {"url": openai_server.url, "model": "student"}

    openai_server.requests.clear()
    with pytest.raises(ValueError, match="--base: measured on miniature/open, expected miniature/yes_no"):
        distill(openai_server.url, *asked, "--kind", "yes_no", "--out", tmp_path / "other", "--base", checkpoint)
    assert not openai_server.requests

    capsys.readouterr()
    distill(openai_server.url, *asked, "--out", tmp_path / "again", "--base", student / "report.json")
    assert "60 %           1.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no config.json there"),
        (("http://127.0.0.1:1/v1", "--no-write"), "--no-write: a URL has no checkpoint"),
        (("http://127.0.0.1:1/v1", "--write-to", "nowhere"), "--write-to: no config.json in nowhere"),
        (("http://127.0.0.1:1/v1", "--items", "0"), "--items: 0"),
        (("http://127.0.0.1:1/v1", "--thresholds", "60"), "--thresholds: 60.0"),
        (("http://127.0.0.1:1/v1", "--sizes", "1", "0"), "sizes: 0"),
        (("http://127.0.0.1:1/v1", "--task", "visual-haystacks"), "--path: missing, --task visual-haystacks needs it"),
        (("http://127.0.0.1:1/v1", "--coco", "x"), "--coco: is not for --task miniature"),
        (("http://127.0.0.1:1/v1", "--task", "mm-niah", "--path", "no", "--images", "x"), "--path: no: no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(*arguments)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distill("--help")
    text = capsys.readouterr().out
    for option in (
        "--task",
        "--sizes",
        "--items",
        "--kind",
        "--thresholds",
        "--base",
        "--resume",
        "--engine",
        "--concurrency",
    ):
        assert option in text
    assert "85 % of the model's own" in " ".join(text.split())
