"""Stretched positions on a layout of text, images of 2x3 tokens, and text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.cli import main
from distill.data.stretch import stretched
from distill.recipe import StretchConfig

NUM_IMAGES, IMAGE_TOKENS = 5, 6
TYPES_T = torch.tensor([0, 0, *[*[1] * IMAGE_TOKENS, 0] * NUM_IMAGES, 0, 0, 0])
# Time stands still within an image; height and width are those of its rows and columns.
WITHIN_3T = torch.tensor([[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])


def natural() -> torch.Tensor:
    columns, start = [torch.tensor([[0, 1]]).expand(3, -1)], 2
    for _ in range(NUM_IMAGES):
        columns += [start + WITHIN_3T, torch.full((3, 1), start + 3)]
        start += 4
    return torch.cat([*columns, torch.arange(start, start + 3).expand(3, -1)], dim=1)


def stretch(seed: int, to: int = 500, share: float = 1.0) -> torch.Tensor:
    return stretched(natural(), TYPES_T, StretchConfig(to_position=to, share=share), f"sample {seed}")


def test_gaps_lie_before_images_and_after_the_last_one_only() -> None:
    gaps_T = (stretch(3) - natural())[0].diff(prepend=torch.zeros(1, dtype=torch.long))
    begins = (TYPES_T.diff(prepend=torch.zeros(1, dtype=torch.long)) == 1).nonzero()[:, 0].tolist()
    assert set(gaps_T.nonzero()[:, 0].tolist()) <= {*begins, int(TYPES_T.nonzero()[-1]) + 1}
    assert (gaps_T >= 0).all()
    # All axes move alike: an image keeps its rows and columns.
    assert torch.equal(stretch(3) - natural(), (stretch(3) - natural())[:1].expand(3, -1))


def test_lengths_up_to_the_last_position_are_met_and_none_beyond() -> None:
    ends = [int(stretch(seed).max()) for seed in range(400)]
    assert max(ends) <= 500
    quarters = [sum(100 * i + 100 <= end < 100 * i + 200 for end in ends) for i in range(4)]
    # Uniform over the 476 that are free: about 84 in a hundred positions.
    assert all(50 < quarter < 120 for quarter in quarters)


def test_a_sample_always_gets_the_same_gaps_and_another_one_others() -> None:
    assert torch.equal(stretch(1), stretch(1))
    assert not torch.equal(stretch(1), stretch(2))


def test_a_share_keeps_its_positions() -> None:
    kept = sum(torch.equal(stretch(seed, share=0.75), natural()) for seed in range(400))
    assert 60 < kept < 140
    assert torch.equal(stretch(1, share=0.0), natural())


def test_what_has_no_room_or_no_image_keeps_its_positions() -> None:
    assert torch.equal(stretch(1, to=int(natural().max())), natural())
    positions_3T = torch.arange(9).expand(3, -1)
    config = StretchConfig(to_position=500, share=1.0)
    assert torch.equal(stretched(positions_3T, torch.zeros(9, dtype=torch.long), config, "text"), positions_3T)


def test_a_prompt_that_ends_with_its_last_image_is_stretched_too() -> None:
    last = int(TYPES_T.nonzero()[-1]) + 1
    config = StretchConfig(to_position=500, share=1.0)
    ends = [int(stretched(natural()[:, :last], TYPES_T[:last], config, str(seed)).max()) for seed in range(50)]
    assert 300 < max(ends) <= 500


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share: 1\.5, expected a share from 0 to 1"):
        StretchConfig(to_position=9, share=1.5)


def test_a_recording_is_of_the_stretched_samples(write_recipe: Callable[[Path], Path], tmp_path: Path) -> None:
    recipe, recording = str(write_recipe(tmp_path)), str(tmp_path / "recording")
    settings = ["train.steps=2", "data.stretch={to_position: 200, share: 1.0}"]

    def losses(name: str, *overrides: str) -> list[dict[str, float]]:
        assert main(["train", recipe, "train.steps=2", f"output={tmp_path / name}", *overrides]) == 0
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["losses"] for line in lines]

    live = losses("live", *settings)
    assert main(["record", recipe, recording, *settings, "--top-k", "all", "--dtype", "float32"]) == 0
    for recorded, expected in zip(losses("recorded", *settings, f"teacher.recording={recording}"), live, strict=True):
        assert recorded == pytest.approx(expected, rel=1e-5)
    assert losses("natural")[0] != pytest.approx(live[0], rel=1e-2)
    assert main(["train", recipe, f"teacher.recording={recording}", f"output={tmp_path / 'other'}"]) == 1


def test_positions_beyond_the_students_are_refused(
    write_recipe: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write_recipe(tmp_path)), "data.stretch={to_position: 99999}"]) == 1
    assert "data.stretch.to_position: 99999, expected one of the student's positions" in capsys.readouterr().err
