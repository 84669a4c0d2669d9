from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.recipe import TeacherConfig
from distill.recording.binding import bind_teacher, glimpse_teacher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A teacher whose weights are larger than what is looked at before a training."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2**20), "b": torch.zeros(8)}, tmp_path / "model.safetensors")
    return tmp_path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [300, -1], ids=["first values", "last values"])
def test_other_weights_are_seen_at_a_glimpse(folder: Path, place: int) -> None:
    before = glimpse_teacher(TeacherConfig(path=str(folder)))
    flip(folder / "model.safetensors", place)
    assert glimpse_teacher(TeacherConfig(path=str(folder))) != before


def test_only_recording_reads_all_weights(folder: Path) -> None:
    config = TeacherConfig(path=str(folder))
    glimpse, bound = glimpse_teacher(config), bind_teacher(config)
    flip(folder / "model.safetensors", 2**21)
    assert glimpse_teacher(config) == glimpse
    assert bind_teacher(config)["weights_sha256"] != bound["weights_sha256"]


def test_tensors_of_other_names_are_seen_at_a_glimpse(folder: Path) -> None:
    before = glimpse_teacher(TeacherConfig(path=str(folder)))
    save_file({"a": torch.zeros(2**20), "c": torch.zeros(8)}, folder / "model.safetensors")
    assert glimpse_teacher(TeacherConfig(path=str(folder))) != before


def test_of_a_teacher_that_is_not_here_the_path_is_bound(tmp_path: Path) -> None:
    glimpse = glimpse_teacher(TeacherConfig(path=str(tmp_path / "gone")))
    assert (glimpse["config_sha256"], glimpse["weights"]) == (None, None)
