"""The whole verb, on reports with known curves."""

import argparse
import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.checkpoint import laid_record, write_laid
from distill.comparison import command
from tests.distill.comparison.reports import make_evaluation, write_report

BASE = {1: 99, 5: 95, 20: 70, 50: 30}
STUDENT = {1: 99, 5: 97, 20: 96, 50: 80}


def distill(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="distill")
    command.add_parser(parser.add_subparsers(required=True))
    chosen = parser.parse_args(["compare", *map(str, arguments)])
    return int(chosen.run(chosen))


class Page(HTMLParser):
    """What the tests look at in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scopes: list[str | None] = []
        self.resources: list[str] = []
        self.captions = 0
        self.alternatives: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "th":
            self.scopes.append(values.get("scope"))
        self.captions += tag == "caption"
        self.resources += [values[name] or "" for name in ("src", "srcset", "href") if name in values]
        if tag == "img":
            self.alternatives.append(values.get("alt"))


def test_folders_files_and_checkpoints_become_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_report(tmp_path / "base", BASE, answers=True)
    student = write_report(tmp_path / "student", STUDENT, answers=True)
    checkpoint = tmp_path / "teacher"
    checkpoint.mkdir()
    write_laid(checkpoint, laid_record("teacher") | {"effective_window": make_evaluation({**BASE, 50: 96}).to_dict()})
    out = tmp_path / "out"

    assert distill(base, student / "report.json", checkpoint, "--out", out) == 0

    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "figure.png", "index.html", "table.md"]
    printed = capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert table in printed
    rows = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines() if line.startswith("| student")]
    accuracies, windows, gained = rows
    assert accuracies[1:4:2] == ["99.0 (94.6 to 99.8)", "96.0 (90.2 to 98.4)"]
    assert windows[1].startswith("≥ 50 ")
    # The base falls below 60 % at 20 + 30 * 10 / 40 images.
    assert gained[2].startswith(f"≥ {50 / 27.5:.2f} (")
    assert "Against base" in table
    assert "short-context gain (1, 5, 20) | " in table
    numbers = json.loads((out / "compare.json").read_text())
    assert [row["name"] for row in numbers["rows"]] == ["base", "student", "teacher"]
    # No answers are known of the checkpoint.
    assert numbers["paired"] is False
    assert [point["accuracy"]["value"] for point in numbers["rows"][2]["curve"]] == [0.99, 0.95, 0.7, 0.96]
    assert numbers["rows"][1]["gains"]["long"]["value"] == pytest.approx(0.8 / 0.3 - 1)
    assert "factors" not in numbers["rows"][0]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    base, odd = write_report(tmp_path / "base", BASE), write_report(tmp_path / "odd", STUDENT)
    distill(base, f"<i>&student={odd}", "--out", tmp_path)
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert page.captions == 3
    assert set(page.scopes) == {"col", "row"}
    assert len(page.alternatives) == 1
    assert page.alternatives[0]
    light, dark = sorted((picture(url) for url in page.resources), key=lambda image: -image.getpixel((0, 0))[0])
    assert (light.getpixel((0, 0)), dark.getpixel((0, 0))) == ((255, 255, 255), (0, 0, 0))
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;i&gt;&amp;student" in text


def picture(url: str) -> Any:
    head, _, payload = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(payload, validate=True))).convert("RGB")


def test_seeds_of_one_method_share_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_report(tmp_path / "base", BASE)
    seeds = [write_report(tmp_path / str(seed), {**STUDENT, 50: 70 + 10 * seed}) for seed in range(3)]
    distill(f"LAid={seeds[0]},{seeds[1]},{seeds[2]}", base, "--base", "base", "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "LAid (3 seeds)" in printed
    assert "hierarchical bootstrap" in printed
    row = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"][0]
    assert len(row["sources"]) == 3
    assert row["curve"][3]["accuracy"]["value"] == pytest.approx(0.8)


def test_a_name_may_hold_a_bar(tmp_path: Path) -> None:
    distill(f"a|b={write_report(tmp_path / 'base', BASE)}", "--out", tmp_path)
    assert "| a\\|b " in (tmp_path / "table.md").read_text()


def test_a_path_may_hold_the_sign_of_a_name(tmp_path: Path) -> None:
    distill(write_report(tmp_path / "lr=1e-3", BASE), "--out", tmp_path)
    (row,) = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert row["name"] == "lr=1e-3"


def test_other_tasks_and_sizes_are_refused_with_both_names(tmp_path: Path) -> None:
    base = write_report(tmp_path / "base", BASE)
    other_task = write_report(tmp_path / "task", BASE, task="miniature/yes_no")
    with pytest.raises(ValueError, match=r"base/report.json was measured on miniature/open and .*task/report.json on"):
        distill(base, other_task)
    other_sizes = write_report(tmp_path / "sizes", {1: 9, 3: 9})
    message = r"base/report.json was measured at 1 5 20 50 images and .*sizes/report.json at 1 3;"
    with pytest.raises(ValueError, match=message):
        distill(base, other_sizes)


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = (write_report(tmp_path / folder / "student", BASE) for folder in "ab")
    with pytest.raises(ValueError, match="student: the name of two rows; give each its own, as in student-2=REPORT"):
        distill(first, second)
    assert distill(first, f"student-2={second}", "--out", tmp_path) == 0


def test_answers_of_another_run_are_refused(tmp_path: Path) -> None:
    report = write_report(tmp_path / "base", BASE, answers=True)
    answers = report / "answers.jsonl"
    answers.write_text("\n".join(answers.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(ValueError, match=r"99 of 99 answers are right at 1 images, but .* 99 of 100"):
        distill(report)


def test_answers_beyond_those_reported_do_no_harm(tmp_path: Path) -> None:
    report = write_report(tmp_path / "base", BASE, answers=True)
    with (report / "answers.jsonl").open("a") as file:
        for answer in ({"images": 7, "index": 0, "correct": True}, {"images": 1, "index": 100, "correct": False}):
            file.write(json.dumps(answer) + "\n")
    distill(report, "--out", tmp_path)
    assert json.loads((tmp_path / "compare.json").read_text())["paired"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "report.json: not there, expected a report.json of distill evaluate"),
        ("accuracy", "report.json: not a report, expected a report.json of distill evaluate"),
        ("[1]", "report.json: not a report"),
        ("{}", "report.json: no effective_window there"),
        ('{"effective_window": {}}', "report.json: effective_window: .*expected a block written by distill evaluate"),
    ],
    ids=["missing", "text", "list", "empty", "no block"],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        distill(path)


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distill("--help")
    text = capsys.readouterr().out
    assert "LAid=laid-1.json,laid-2.json" in text
    assert "--base" in text
