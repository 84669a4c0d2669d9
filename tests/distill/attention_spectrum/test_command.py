"""The whole verb, on random models."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.attention_spectrum import command


def distill(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="distill")
    command.add_parser(parser.add_subparsers(required=True))
    chosen = parser.parse_args(["spectrum", *map(str, arguments)])
    return int(chosen.run(chosen))


def test_checkpoints_are_compared(
    model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes in any order; a second name for the same model gives the same numbers."""
    base = model_folders["base"]
    teacher, again = f"teacher={model_folders['teacher']}", f"again={base}"
    assert distill(f"base={base}", teacher, again, "--images", 10, 8, "--out", tmp_path) == 0

    figures = ("comparison.png", "low_band.png", "profiles.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*figures, "spectrum.json"])
    for name in figures:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 400
            assert (np.asarray(image.convert("L")) < 250).mean() > 0.02

    report = json.loads((tmp_path / "spectrum.json").read_text())
    assert report["checkpoints"] == {"base": str(base), "teacher": str(model_folders["teacher"]), "again": str(base)}
    assert (report["rounds"], report["rows"], report["low_band"]) == (2, "question", 0.25)
    assert [(each["checkpoint"], each["images"], each["items"]) for each in report["measured"]] == [
        (name, images, 2 * images) for name in ("base", "teacher", "again") for images in (8, 10)
    ]
    base_8, _, teacher_8, _, again_8, _ = report["measured"]
    assert base_8["heads"] == again_8["heads"]
    assert [(head["layer"], head["head"]) for head in base_8["heads"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(teacher_8["heads"]) == 12
    assert base_8["period_images"] == pytest.approx([8, 4, 8 / 3, 2], rel=1e-5)
    assert base_8["period_positions"] == pytest.approx([32, 16, 32 / 3, 8], rel=1e-5)
    for head in base_8["heads"]:
        assert sum(head["profile"]) == pytest.approx(head["image_attention"], rel=1e-4)
        assert sum(head["energy"]) == pytest.approx(np.var(head["profile"]), rel=1e-3)
        assert sum(head["item_energy"]) > sum(head["energy"])
    shares = [head["item_low_share"] for head in base_8["heads"]]
    assert base_8["summary"]["item_low_share"] == pytest.approx(np.mean(shares))
    known = [head["low_share"] for head in base_8["heads"] if head["low_share"] is not None]
    assert base_8["summary"]["known_heads"] == len(known)

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["8", "teacher", "16"] in [line[:3] for line in lines]


def test_the_committed_models_have_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    distill("miniature:base", "--images", 4, "--low-band", 0.6, "--kind", "yes_no", "--rows", "answer")
    report = json.loads(Path("runs/spectrum/spectrum.json").read_text())
    assert report["checkpoints"] == {"base": "miniature:base"}
    assert report["task"] == "miniature/yes_no"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no config.json there, expected a checkpoint folder or miniature:teacher"),
        (("miniature:base", "base=miniature:teacher"), "base: the name of two checkpoints; give .* base-2=FOLDER"),
        (("miniature:base", "--rounds", "1"), "--rounds: 1, expected at least 2"),
        (("miniature:base", "--low-band", "1"), "--low-band: 1, expected a share between 0 and 1"),
        (("miniature:base", "--images", "7"), "--images: 7, expected at least 8 for frequencies outside"),
        (("miniature:base", "--images", "20", "--low-band", "0.05"), "--images: 20, expected at least 40"),
        (("miniature:student", "--images", "8"), "path: 'miniature:student', expected miniature:teacher or"),
    ],
)
def test_what_cannot_work_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(*arguments)


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distill("--help")
    text = capsys.readouterr().out
    assert "distill spectrum miniature:teacher miniature:base runs/miniature/student" in text
    assert "--low-band" in text
