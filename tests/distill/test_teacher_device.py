import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.cli import main
from distill.loading import choose_teacher_device
from distill.recipe import TeacherConfig

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("verb", ["train", "record"])
@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_here_is_refused(
    write_recipe: Callable[[Path], Path], tmp_path: Path, verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = [str(tmp_path / "recording")] if verb == "record" else []
    assert main([verb, str(write_recipe(tmp_path)), *folder, f"teacher.device={name}"]) == 1
    assert f"teacher.device: '{name}', expected one that is here: cpu" in capsys.readouterr().err


def test_a_teacher_on_its_own_device_teaches_the_same(write_recipe: Callable[[Path], Path], tmp_path: Path) -> None:
    recipe, logs = str(write_recipe(tmp_path)), []
    for device in ("null", "cpu"):
        run = tmp_path / device
        assert main(["train", recipe, "train.steps=2", f"teacher.device={device}", f"output={run}"]) == 0
        logs.append([json.loads(line)["losses"] for line in (run / "log.jsonl").read_text().splitlines()])
    assert logs[0] == logs[1]


def test_the_default_is_where_the_student_is() -> None:
    student = torch.device("cuda:1")
    assert choose_teacher_device(TeacherConfig(path="teacher"), student) == student
    assert choose_teacher_device(TeacherConfig(path="teacher", device="cpu"), student) == CPU


@pytest.mark.usefixtures("two_gpus")
def test_one_gpu_for_the_teachers_of_all_processes_is_refused() -> None:
    numbered = TeacherConfig(path="teacher", device="cuda:1")
    assert choose_teacher_device(numbered, CPU) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"'cuda:1' with 2 processes, each of which has a teacher of its own"):
        choose_teacher_device(numbered, CPU, num_processes=2)
    for name in ("cuda", "cpu"):
        config = TeacherConfig(path="teacher", device=name)
        assert choose_teacher_device(config, CPU, num_processes=2) == torch.device(name)
    with pytest.raises(ValueError, match=r"'cuda:2', expected one that is here: cpu, cuda, cuda:0, cuda:1$"):
        choose_teacher_device(TeacherConfig(path="teacher", device="cuda:2"), CPU)
