"""A step in parts, in two processes, recomputed or with adapters: the same training, or as little of it as asked."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rope_gain
from distill.checkpoint import read_laid
from distill.cli import main

# Sums in another order, through six steps of AdamW, which divides small gradients by their size.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 2e-4


@pytest.fixture(scope="module")
def train(
    write_recipe: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[list[dict[str, Any]], dict[str, torch.Tensor]]]:
    """Trains with these overrides; returns the log and the student's tensors."""

    def run(*overrides: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp("run")
        assert main(["train", str(write_recipe(folder)), *overrides]) == 0
        return read_run(folder / "run")

    return run


def read_run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return log, dict(rope_gain.load_pretrained(folder / "student").state_dict())


@pytest.fixture(scope="module")
def whole(train: Any) -> Any:
    return train()


def assert_same_run(run: Any, expected: Any) -> None:
    (log, weights), (expected_log, expected_weights) = run, expected
    for entry, expected_entry in zip(log, expected_log, strict=True):
        assert entry["losses"] == pytest.approx(expected_entry["losses"], rel=LOSS_TOLERANCE)
        assert entry["loss"] == pytest.approx(expected_entry["loss"], rel=LOSS_TOLERANCE)
        assert entry["grad_norm"] == pytest.approx(expected_entry["grad_norm"], rel=1e-3)
        for name in ("step", "samples", "images", "tokens", "gamma"):
            assert entry[name] == expected_entry[name]
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_in_parts_equals_the_step_in_one_piece(train: Any, whole: Any, parts: int) -> None:
    # Parts of two samples and of one, and parts that have none.
    assert {entry["samples"] for entry in whole[0]} == {3, 4}
    assert_same_run(train(f"train.micro_batches={parts}"), whole)


def test_the_rows_that_are_drawn_do_not_depend_on_the_parts(train: Any, whole: Any) -> None:
    drawn = train("loss.matching.max_rows=3")
    assert drawn[0][0]["losses"]["alignment"] == pytest.approx(whole[0][0]["losses"]["alignment"])
    assert drawn[0][0]["losses"]["matching"] != pytest.approx(whole[0][0]["losses"]["matching"], rel=1e-3)
    assert_same_run(train("loss.matching.max_rows=3", "train.micro_batches=2"), drawn)


def test_gradient_checkpointing_changes_nothing(train: Any, whole: Any) -> None:
    log, weights = train("train.gradient_checkpointing=true")
    assert [entry["losses"] for entry in log] == [entry["losses"] for entry in whole[0]]
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[1].items())


def test_two_processes_equal_one(write_recipe: Callable[[Path], Path], tmp_path: Path, whole: Any) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, "-m", "distill", "train", str(write_recipe(tmp_path))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the student is in") == 1
    record = read_laid(tmp_path / "run" / "student")
    assert record is not None
    assert record["training"]["processes"] == 2
    assert_same_run(read_run(tmp_path / "run"), whole)


def test_adapters_train_the_decoder_and_the_gains_alone(train: Any, model_folders: dict[str, Path]) -> None:
    _, weights = train("lora={rank: 2, alpha: 4, targets: [q_proj, down_proj]}")
    base = rope_gain.load_pretrained(model_folders["base"]).state_dict()
    gains = [name for name in weights if "rope_gain" in name]
    assert all(weights[name].abs().max() > 0 for name in gains)
    changed = {name for name in base if not torch.equal(weights[name], base[name])}
    assert {name.rsplit(".", 2)[-2] for name in changed} == {"q_proj", "down_proj"}
    assert all("language_model" in name for name in changed)
    for name in changed:
        values = torch.linalg.svdvals(weights[name] - base[name])
        assert values[1] > 1e-4
        assert values[2] < 1e-5


def test_adapters_on_layers_that_do_not_exist_are_refused(
    write_recipe: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write_recipe(tmp_path)), "lora={targets: [qkv_proj]}"]) == 1
    assert "qkv_proj" in capsys.readouterr().err


# `distill train`, killed by SIGKILL, which nobody can prepare for, when its log has so many lines.
KILLED = """
import os, signal, sys
from distill.cli import main
from distill.runlog import RunLog

def add(log, entry, add=RunLog.add):
    add(log, entry)
    if len(log.entries()) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

RunLog.add = add
main(sys.argv[2:])
"""


@pytest.mark.parametrize("num_lines", [1, 4])
def test_a_run_killed_at_once_resumes_bit_for_bit(
    write_recipe: Callable[[Path], Path], tmp_path: Path, whole: Any, num_lines: int
) -> None:
    arguments = ["train", str(write_recipe(tmp_path))]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(num_lines), *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "student").exists()
    assert main([*arguments, "--resume"]) == 0
    resumed_log, weights = read_run(tmp_path / "run")
    assert [entry["losses"] for entry in resumed_log] == [entry["losses"] for entry in whole[0]]
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[1].items())
