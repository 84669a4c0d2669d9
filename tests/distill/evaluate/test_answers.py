"""What a run leaves on disk, whenever it ends, and how another one goes on from there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.evaluate.answers import AnswersFile
from distill.evaluate.measure import Outcome
from distill.evaluate.report import read_evaluation
from distill.evaluate.tasks import MiniatureTask

IDENTITY = {"task": "miniature/yes_no", "seed": 1, "checkpoint": "/student"}
SIZES, NUM_ITEMS = (1, 3), 6


def outcome(index: int, images: int = 2) -> Outcome:
    return Outcome(
        images=images,
        index=index,
        needle_index=1,
        truth="yes",
        answer="no",
        correct=False,
        compliant=True,
        prompt_tokens=37,
    )


def write(folder: Path, *outcomes: Outcome, resume: bool = False, **identity: Any) -> AnswersFile:
    with AnswersFile(folder, IDENTITY | identity, resume=resume) as answers:
        for each in outcomes:
            answers.add(each)
    return answers


def lines(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_every_answer_is_a_line(tmp_path: Path) -> None:
    write(tmp_path, outcome(1), outcome(0))
    assert [line["index"] for line in lines(tmp_path)] == [1, 0]
    assert lines(tmp_path)[0] == {
        "images": 2,
        "index": 1,
        "needle_index": 1,
        "truth": "yes",
        "answer": "no",
        "correct": False,
        "compliant": True,
        "prompt_tokens": 37,
    }


def test_a_line_is_on_disk_when_it_is_added(tmp_path: Path) -> None:
    with AnswersFile(tmp_path, IDENTITY, resume=False) as answers:
        answers.add(outcome(0))
        assert len(lines(tmp_path)) == 1


def test_answers_are_put_in_order(tmp_path: Path) -> None:
    answers = write(tmp_path, outcome(1), outcome(0), outcome(0, images=1))
    answers.sort()
    assert [(line["images"], line["index"]) for line in lines(tmp_path)] == [(1, 0), (2, 0), (2, 1)]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, outcome(0), outcome(1))
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text()[:-20])
    answers = write(tmp_path, outcome(2), resume=True)
    assert answers.outcomes == [outcome(0), outcome(2)]
    assert [line["index"] for line in lines(tmp_path)] == [0, 2]


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 2), ("task", "miniature/open"), ("checkpoint", "/base"), ("engine_args", ["seed=1"])]
)
def test_answers_of_another_run_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path, outcome(0))
    with pytest.raises(ValueError, match=rf"^--resume: .*run.json: {key}: .*, but this run has "):
        write(tmp_path, resume=True, **{key: value})
    assert len(lines(tmp_path)) == 1


def test_answers_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    write(tmp_path, outcome(0))
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"run.json is missing"):
        write(tmp_path, resume=True)


def test_a_run_that_did_not_end_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, outcome(0))
    with pytest.raises(ValueError, match=r"a run that did not end; add --resume"):
        write(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    write(tmp_path)
    assert lines(tmp_path) == []
    assert not (tmp_path / "report.json").exists()


def test_resuming_nothing_starts(tmp_path: Path) -> None:
    assert write(tmp_path / "new", resume=True).outcomes == []


def command(url: str, out: Path, *more: str) -> list[str]:
    sizes = [str(size) for size in SIZES]
    return [
        "evaluate",
        url,
        "--sizes",
        *sizes,
        "--items",
        str(NUM_ITEMS),
        "--concurrency",
        "2",
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture
def served(openai_server: Any) -> Any:
    """A server that is right about every item but one."""
    task = MiniatureTask(kind="open", seed=1)
    for size in SIZES:
        for index in range(NUM_ITEMS):
            item = task.item(size, index)
            openai_server.learn(item, "none" if (size, index) == (3, 2) else item.answer)
    return openai_server


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_run_goes_on_with_what_is_missing(served: Any, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    served.hold_after = 8
    process = subprocess.Popen(
        [sys.executable, "-m", "distill", *command(served.url, out)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not ((out / "answers.jsonl").exists() and (out / "answers.jsonl").read_bytes().count(b"\n") == 8):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "run.json"]
    if number == signal.SIGINT:
        assert f"8 answers are kept; to go on: distill {' '.join(command(served.url, out))} --resume" in error
        assert "Traceback" not in error

    served.hold_after = None
    served.requests.clear()
    assert main(command(served.url, out, "--resume")) == 0
    assert len(served.requests) == len(SIZES) * NUM_ITEMS - 8
    report = json.loads((out / "report.json").read_text())
    assert report["resumed"] == 8
    # As if it had never been stopped.
    assert main(command(served.url, tmp_path / "whole")) == 0
    assert read_evaluation(out / "report.json") == read_evaluation(tmp_path / "whole" / "report.json")
    assert (out / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()


def test_a_finished_run_can_be_widened(served: Any, tmp_path: Path) -> None:
    narrow = [*command(served.url, tmp_path), "--items", "4"]
    assert main(narrow) == 0
    served.requests.clear()
    assert main(command(served.url, tmp_path, "--resume")) == 0
    assert len(served.requests) == len(SIZES) * 2
    assert read_evaluation(tmp_path / "report.json").items_per_size == NUM_ITEMS


def test_a_refused_request_keeps_the_answers_before_it(
    served: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = MiniatureTask(kind="open", seed=1).item(3, 4)
    del served.answers[(tuple(image.tobytes() for image in item.images), item.question)]
    assert main(command(served.url, tmp_path)) == 1
    captured = capsys.readouterr().err
    assert "unknown prompt" in captured
    assert f"{len(lines(tmp_path))} answers are kept" in captured
    served.learn(item, item.answer)
    assert main(command(served.url, tmp_path, "--resume")) == 0


def test_a_checkpoint_that_changed_is_another_target(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(random_checkpoint, tmp_path / "student"))
    asked = ["evaluate", str(checkpoint), "--sizes", "1", "--items", "1", "--out", str(tmp_path / "out"), "--resume"]
    assert main(asked) == 0
    # Its laid.json was written, its weights were not.
    assert main(asked) == 0
    os.utime(checkpoint / "model.safetensors")
    assert main(asked) == 1
    assert "run.json: weights: " in capsys.readouterr().err
