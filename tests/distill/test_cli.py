"""The command line itself; each verb has tests of its own."""

from pathlib import Path

import pytest

from distill.cli import main

RECIPE = str(Path(__file__).parents[2] / "distill" / "recipes" / "miniature.yaml")


@pytest.mark.parametrize("arguments", [[RECIPE, "train.stepz=3", "--resume"], [RECIPE, "--resume", "train.stepz=3"]])
def test_settings_may_stand_before_an_option_and_after_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", *arguments]) == 1
    assert "stepz" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["train", RECIPE, "--resume", "--steps=3"], ["train", RECIPE, "--resume", "more"], ["inspect", "folder", "a=b"]],
)
def test_other_words_too_many_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err
