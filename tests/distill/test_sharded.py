"""A student in shards over two processes, by FSDP2 or DeepSpeed: the same training as in one."""

import importlib.util
import json
import os
import re
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
from distill.config import load_config
from distill.miniature.items import make_item
from distill.miniature.models import Size, make_model
from distill.recipe import Recipe
from distill.sharding import zero3
from tests.distill.test_parallel import WEIGHT_TOLERANCE, assert_same_run, read_run

# The first start of DeepSpeed on a machine compiles for a minute.
pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "distill/recipes/accelerate"
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
    # One process's part has no image for a tower in training.
    "text beside images": [
        "train.freeze_vision=false",
        "data.miniature=null",
        "data.jsonl.path={data}",
        "data.max_samples_per_step=2",
    ],
    "bfloat16 weights": ["student.dtype=bfloat16", "train.mixed_precision=bf16", "train.steps=1"],
}

# DeepSpeed knows no weights of two types, and would let weights decay that no loss reaches.
CASES_OF = {
    "fsdp2": CASES,
    "zero3": CASES
    | {
        "a loss on a low layer alone": [*CASES["a loss on a low layer alone"], "train.weight_decay=0"],
        "bfloat16 weights": ["train.mixed_precision=bf16", "train.steps=1"],
    },
}
# Without it tensors as small as these would stay whole.
ALL_SHARED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NEEDS_DEEPSPEED = pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")

# Several times `distill train` in the processes of one launch, since starting them takes longer than training.
SEVERAL = """
import json, sys
import torch
from distill.cli import main

# A second group is not made in the same processes: the first one stays.
torch.distributed.destroy_process_group = lambda *_: None
for arguments in json.loads(sys.argv[1]):
    print("code", main(arguments))
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


Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", params=["fsdp2", pytest.param("zero3", marks=NEEDS_DEEPSPEED)])
def sharding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def start(sharding: str, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts something in two processes with the example configuration, or some settings in place of its own."""

    def start(*arguments: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
        config = tmp_path_factory.mktemp("accelerate") / "config.yaml"
        example = yaml.safe_load((CONFIGS / f"{sharding}.yaml").read_text())
        config.write_text(yaml.safe_dump(example | {"num_processes": 2} | settings))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        # Where DeepSpeed is asked for, Accelerate wants no other word for a CPU.
        place = {"fsdp2": {"ACCELERATE_USE_CPU": "true"}, "zero3": {"DS_ACCELERATOR": "cpu"}}[sharding]
        return subprocess.run(
            [*launch, "--main_process_port", "0", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | place,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )

    return start


@pytest.fixture(scope="module")
def all_shared(sharding: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of Accelerate's by which no tensor stays whole."""
    if sharding == "fsdp2":
        return {}
    file = tmp_path_factory.mktemp("deepspeed") / "config.json"
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    file.write_text(json.dumps(ALL_SHARED | dict.fromkeys(automatic, "auto")))
    return {"deepspeed_config": {"deepspeed_config_file": str(file), "zero3_init_flag": False}}


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
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample with images, and one without."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    lines = []
    for index in range(2):
        parts: list[dict[str, Any]] = [{"type": "text", "text": "what is there?"}]
        if index == 0:
            item = make_item(1, 2, "open")
            for place, image in enumerate(item.images):
                image.save(path.with_name(f"{place}.png"))
                parts.insert(0, {"type": "image_url", "image_url": {"url": f"{place}.png"}})
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def arguments(
    sharding: str,
    write_recipe: Callable[[Path], Path],
    deep_student: Path,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[str]]:
    """What follows `distill` in each of the cases."""
    return {
        case: [
            "train",
            str(write_recipe(tmp_path_factory.mktemp("case"))),
            *(override.replace("{deep}", str(deep_student)).replace("{data}", str(data)) for override in overrides),
        ]
        for case, overrides in CASES_OF[sharding].items()
    }


@pytest.fixture(scope="module")
def several(
    start: Start,
    all_shared: dict[str, Any],
    arguments: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> "subprocess.CompletedProcess[str]":
    """Every case in two processes."""
    script = tmp_path_factory.mktemp("several") / "several.py"
    script.write_text(SEVERAL)
    return start(str(script), json.dumps(list(arguments.values())), **all_shared)


@pytest.fixture(scope="module")
def sharded(
    sharding: str, several: "subprocess.CompletedProcess[str]", arguments: dict[str, list[str]]
) -> dict[str, Run]:
    """What came of the cases; DeepSpeed refuses one of them."""
    cases = [case for case in CASES if (sharding, case) != ("zero3", "text beside images")]
    assert several.returncode == 0, several.stderr
    assert several.stdout.count("the student is in") == len(cases), several.stderr
    runs = {}
    for case in cases:
        folder = Path(arguments[case][1]).parent / "run"
        assert {path.name for path in folder.iterdir()} - {"samples.jsonl"} == {"laid", "log.jsonl", "student"}
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
def test_two_shards_equal_one_process(
    several: "subprocess.CompletedProcess[str]", sharded: dict[str, Run], alone: Callable[[str], Run], case: str
) -> None:
    if case in sharded:
        assert_same_run(sharded[case], alone(case))
    else:
        assert several.stdout.count("code 1") == 2
        assert several.stderr.count("step 0: 1 parts without images, and train.freeze_vision: false") == 2


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
    start: Start,
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
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "configured for MEGATRON_LM, expected one process, data parallelism"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: '1', expected '2', as in distill/recipes/accelerate"),
        (
            {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading: 'true', expected 'false'",
        ),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "A,B"}, "fsdp_transformer_cls_to_wrap: 'A,B', expected 'none'"),
        ({}, "configured for FSDP in one process alone, expected `accelerate launch`"),
    ],
    ids=["megatron", "fsdp 1", "empty weights", "units", "one process"],
)
def test_what_would_shard_in_another_way_is_refused(
    write_recipe: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    message: str,
) -> None:
    if "ACCELERATE_USE_MEGATRON_LM" not in variables:
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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        pytest.param(
            {},
            "configured for DeepSpeed, which is not installed; install it with: pip install deepspeed",
            marks=pytest.mark.skipif(HAS_DEEPSPEED, reason="deepspeed is installed"),
        ),
        pytest.param({}, "configured for DeepSpeed in one process alone", marks=NEEDS_DEEPSPEED),
        pytest.param(
            {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init_flag: true, expected false", marks=NEEDS_DEEPSPEED
        ),
        pytest.param({"ACCELERATE_USE_CPU": "true"}, "for DeepSpeed and for a CPU", marks=NEEDS_DEEPSPEED),
    ],
    ids=["not installed", "one process", "models in shards", "cpu"],
)
def test_deepspeed_where_it_would_not_run_is_refused(
    write_recipe: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    message: str,
) -> None:
    for name, value in {"ACCELERATE_USE_DEEPSPEED": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(write_recipe(tmp_path))]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (["student.dtype=bfloat16"], {}, "student.dtype: 'bfloat16', expected 'float32' with DeepSpeed"),
        (["train.device=cpu"], {}, "train.device: 'cpu', expected 'auto' with DeepSpeed"),
        (["loss.lambda_kl=0", "loss.lambda_sft=0"], {}, "train.weight_decay: 0.01 with loss.lambda_kl: 0"),
        ([], {"zero_optimization": {"stage": 2}}, "DeepSpeed's zero_optimization.stage: 2, expected 3, as in"),
        (
            [],
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer.device: 'cpu', expected 'none'",
        ),
        ([], {"gradient_clipping": 0.5}, "DeepSpeed's gradient_clipping: 0.5, expected 'none'"),
        ([], {"optimizer": {"type": "Adam"}}, "DeepSpeed's optimizer: {'type': 'Adam'}, expected 'none'"),
    ],
    ids=["bfloat16 weights", "cpu", "decay", "stage 2", "offload", "clipping", "optimizer"],
)
def test_what_deepspeed_would_train_otherwise_is_refused(
    write_recipe: Callable[[Path], Path],
    tmp_path: Path,
    overrides: list[str],
    settings: dict[str, Any],
    message: str,
) -> None:
    recipe = load_config(Recipe, write_recipe(tmp_path), overrides)
    with pytest.raises(ValueError, match=re.escape(message)):
        zero3.check(recipe, {"zero_optimization": {"stage": 3}} | settings, torch.device("cuda"))
