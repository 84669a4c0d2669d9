"""A student in shards over two processes, by FSDP2: the same training as in one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from distill.checkpoint import read_laid
from distill.cli import main
from distill.miniature.models import Size, make_model
from tests.distill.test_parallel import WEIGHT_TOLERANCE, assert_same_run, read_run

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "distill/recipes/accelerate/fsdp2.yaml"
# Sums of bfloat16 values in another order.
BFLOAT16_TOLERANCE = 1e-2

LOW = "[{student: 0, teacher: 0}]"
CASES = {
    "all weights": ["train.freeze_vision=false", "train.gradient_checkpointing=true", "train.micro_batches=2"],
    "adapters": ["student.path={deep}", "lora={rank: 2, alpha: 4, targets: [q_proj, down_proj]}"],
    # No gradient comes to it from above, where a sharded layer is gathered otherwise.
    "a loss on a low layer alone": [
        "student.path={deep}",
        "loss.lambda_kl=0",
        "loss.lambda_sft=0",
        f"loss.alignment.layers={LOW}",
        f"loss.matching.layers={LOW}",
    ],
    "bfloat16 weights": ["student.dtype=bfloat16", "train.mixed_precision=bf16", "train.steps=1"],
}

# Several times `distill train` in the processes of one launch, since starting them takes longer than training.
SEVERAL = """
import json, sys
import torch
from distill.cli import main

# A second group is not made in the same processes: the first one stays.
torch.distributed.destroy_process_group = lambda *_: None
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 0
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
"""

# Every process of a launch, killed by SIGKILL when the log has four lines.
KILLED = """
import os, psutil, sys
from distill.cli import main
from distill.runlog import RunLog

def add(log, entry, add=RunLog.add):
    add(log, entry)
    if len(log.entries()) == 4:
        siblings = psutil.Process(os.getppid()).children()
        for process in sorted(siblings, key=lambda process: process.pid == os.getpid()):
            process.kill()

RunLog.add = add
main(sys.argv[1:])
"""

Run = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Starts something in two processes with the example configuration."""
    config = tmp_path_factory.mktemp("accelerate") / "fsdp2.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(CONFIG.read_text()) | {"num_processes": 2}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]

    def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*launch, "--main_process_port", "0", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    return start


@pytest.fixture(scope="module")
def deep_student(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers, and an output layer that is not the embedding."""
    folder = tmp_path_factory.mktemp("deep")
    size = Size(layers=5, hidden=64, heads=2, key_value_heads=1, mlp=48)
    model = make_model(size, processor.tokenizer, seed=2)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(
    write_recipe: Callable[[Path], Path], deep_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """What follows `distill` in each of the cases."""
    return {
        case: [
            "train",
            str(write_recipe(tmp_path_factory.mktemp("case"))),
            *(override.replace("{deep}", str(deep_student)) for override in overrides),
        ]
        for case, overrides in CASES.items()
    }


@pytest.fixture(scope="module")
def sharded(start: Any, arguments: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every case in two processes."""
    script = tmp_path_factory.mktemp("several") / "several.py"
    script.write_text(SEVERAL)
    result = start(str(script), json.dumps(list(arguments.values())))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the student is in") == len(CASES)
    runs = {}
    for case, (_, recipe, *_) in arguments.items():
        folder = Path(recipe).parent / "run"
        assert sorted(path.name for path in folder.iterdir()) == ["laid", "log.jsonl", "student"]
        record = read_laid(folder / "student")
        assert record is not None
        assert record["training"]["processes"] == 2
        runs[case] = read_run(folder)
    return runs


@pytest.fixture
def alone(arguments: dict[str, list[str]], tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    """The same case in this process."""

    def run(case: str) -> Run:
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([*arguments[case], f"output={tmp_path / 'alone'}"]) == 0
        return read_run(tmp_path / "alone")

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("case", [case for case in CASES if case != "bfloat16 weights"])
def test_two_shards_equal_one_process(sharded: dict[str, Run], alone: Callable[[str], Run], case: str) -> None:
    assert_same_run(sharded[case], alone(case))


def test_bfloat16_weights_beside_float32_gains(sharded: dict[str, Run], alone: Callable[[str], Run]) -> None:
    [entry], weights = sharded["bfloat16 weights"]
    [expected], expected_weights = alone("bfloat16 weights")
    assert entry["losses"] == pytest.approx(expected["losses"], rel=BFLOAT16_TOLERANCE)
    assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=BFLOAT16_TOLERANCE)
    assert {name: tensor.dtype for name, tensor in weights.items()} == {
        name: tensor.dtype for name, tensor in expected_weights.items()
    }
    gains = [name for name in weights if "rope_gain" in name]
    for name in gains:
        torch.testing.assert_close(weights[name], expected_weights[name], rtol=0, atol=WEIGHT_TOLERANCE)


def test_a_killed_run_resumes_in_shards_or_without(
    start: Any,
    arguments: dict[str, list[str]],
    sharded: dict[str, Run],
    tmp_path: Path,
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "run"
    command = [*arguments["all weights"], f"output={folder}"]
    killed = start(str(script), *command)
    assert killed.returncode != 0
    assert not (folder / "student").exists()
    # What the other number of processes goes on from.
    (tmp_path / "alone").mkdir()
    for name in ("state.pt", "log.jsonl"):
        (tmp_path / "alone" / name).write_bytes((folder / name).read_bytes())
    resumed = start("-m", "distill", *command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    log, weights = read_run(folder)
    expected_log, expected_weights = sharded["all weights"]
    assert [entry["losses"] for entry in log] == [entry["losses"] for entry in expected_log]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
    assert main([*command, f"output={tmp_path / 'alone'}", "--resume"]) == 0
    assert_same_run(read_run(tmp_path / "alone"), sharded["all weights"])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "configured for DEEPSPEED, expected one process, data parallelism or"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: '1', expected '2', as in distill/recipes/accelerate"),
        (
            {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading: 'true', expected 'false'",
        ),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "A,B"}, "fsdp_transformer_cls_to_wrap: 'A,B', expected 'none'"),
        ({}, "configured for FSDP in one process alone, expected `accelerate launch`"),
    ],
    ids=["deepspeed", "fsdp 1", "empty weights", "units", "one process"],
)
def test_what_would_shard_in_another_way_is_refused(
    write_recipe: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    message: str,
) -> None:
    if "ACCELERATE_USE_DEEPSPEED" not in variables:
        variables = {
            "ACCELERATE_USE_FSDP": "true",
            **({} if "ACCELERATE_USE_FSDP" in variables else {"FSDP_VERSION": "2"}),
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            **variables,
        }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(write_recipe(tmp_path))]) == 1
    assert message in capsys.readouterr().err
