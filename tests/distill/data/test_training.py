"""`distill train` on samples from disk, good and bad."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main


def line(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "yes"}]}


def text(words: int) -> dict[str, Any]:
    return {"type": "text", "text": " ".join(["what"] * words)}


@pytest.mark.parametrize("policy", ["skip", "fatal"])
def test_the_run_says_what_became_of_every_sample(
    write_recipe: Callable[[Path], Path],
    write_lines: Callable[..., Path],
    tmp_path: Path,
    picture: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
    policy: str,
) -> None:
    """The student's window is 2048 tokens."""
    (tmp_path / "1.png").write_bytes(picture(1, size=(32, 32)))
    image, absent = ({"type": "image_url", "image_url": {"url": url}} for url in ("1.png", "2.png"))
    forged = {"type": "text", "text": "<|image_pad|>"}
    lines = [line(image, text(3)), line(text(2000)), line(text(2048)), line(absent, text(1)), line(image, forged)]
    data = write_lines("data.jsonl", lines)
    overrides = ["data.miniature=null", f"data.jsonl.path={data}", f"data.on_bad_sample={policy}", "train.steps=2"]
    alone = ["teacher=null", "loss.lambda_laid=0", "loss.lambda_kl=0"]
    code = main(["train", str(write_recipe(tmp_path)), *overrides, *alone])
    printed = capsys.readouterr().err
    if policy == "fatal":
        assert code == 1
        assert f"distill: {data}:3: " in printed
        return
    assert code == 0
    assert "data: 5 samples read = 2 used + 3 skipped (1 missing image, 1 image count, 1 too long)" in printed
    *skipped, counts = [json.loads(each) for each in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [each["skipped"] for each in skipped] == ["too long", "missing image", "image count"]
    for number, each in zip((3, 4, 5), skipped, strict=True):
        assert each["message"].startswith(f"{data}:{number}: ")
    assert (counts["read"], counts["used"]) == (5, 2)
