"""vLLM offline against transformers: the same items, prompts and answers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.cli import main
from distill.miniature import checkpoint_path
from rope_gain import RopeGainConfig, attach, gain_modules, load_pretrained, save_pretrained

ASKED = ["--sizes", "1", "5", "--items", "8", "--no-write"]


@pytest.fixture(scope="module")
def gained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base student with gains that depend on the position, large enough to change what it says."""
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp("gained") / "student"
    model = load_pretrained(checkpoint_path("base"))
    attach(model, RopeGainConfig(granularity="layer_frequency", target="query_key", reference_length=16))
    rng = random.Random(0)
    with torch.no_grad():
        for module in gain_modules(model).values():
            for parameter in module.parameters():
                parameter.copy_(
                    torch.tensor([rng.uniform(-0.5, 0.5) for _ in range(parameter.numel())]).view_as(parameter)
                )
    save_pretrained(model, folder)
    AutoProcessor.from_pretrained(checkpoint_path("base")).save_pretrained(folder)
    return folder


def local_answers(checkpoint: Path, out: Path) -> list[Any]:
    assert main(["evaluate", str(checkpoint), "--out", str(out), *ASKED]) == 0
    return answers(out)


def answers(out: Path) -> list[Any]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@pytest.mark.engine
def test_the_engine_answers_as_transformers_does(gained: Path, tmp_path: Path) -> None:
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
    }
    out = tmp_path / "engine"
    engine_args = [f"--engine-arg={each}" for each in ("max_model_len=1024", "max_num_seqs=4", "enforce_eager=true")]
    command = [sys.executable, "-m", "distill", "evaluate", str(gained), "--engine", "vllm", *engine_args]
    subprocess.run([*command, "--out", str(out), *ASKED], env=os.environ | settings, check=True)
    expected = local_answers(gained, tmp_path / "local")
    assert answers(out) == expected
    # Without the gains the answers are others, so the engine has them too.
    assert [line["answer"] for line in expected] != [
        line["answer"] for line in local_answers(checkpoint_path("base"), tmp_path / "base")
    ]
    assert json.loads((out / "report.json").read_text())["effective_window"]["measured"] == "vllm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:1/v1", "--model", "m", "--engine", "vllm"], "--engine vllm: runs a checkpoint folder"),
        ([str(checkpoint_path("base")), "--engine-arg", "seed=1"], "--engine-arg: seed=1, only with --engine vllm"),
    ],
)
def test_an_engine_without_use_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err
