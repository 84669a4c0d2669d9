import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rope_gain
from distill.cli import main
from distill.config import load_config
from distill.data.collate import Collator
from distill.families import ARCHITECTURES, find_family
from distill.loading import load_model, make_source
from distill.model import SignalModel
from distill.planning.compute import plan_compute
from distill.planning.fit import fit_matching, fit_rows
from distill.planning.make import make_plan
from distill.planning.memory import Execution, plan_memory, signal_bytes, teacher_bytes
from distill.planning.shapes import load_shape
from distill.planning.step import Assumption, image_tokens, plan_step
from distill.recipe import ModelConfig, Recipe
from distill.recording.teacher import open_recorded_teacher
from rope_gain.families import find_family as find_gain_family
from tests.rope_gain.models import build_tiny

RECIPES = Path(__file__).parents[2] / "distill" / "recipes"
SEVEN = RECIPES / "qwen2.5-vl-7b.yaml"


@pytest.fixture
def recipe_path(write_recipe: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def large(*overrides: str) -> tuple[Recipe, Any, Any, Any]:
    """Recipe, student, teacher and the part of a step in memory."""
    recipe = load_config(Recipe, SEVEN, overrides)
    assert recipe.teacher is not None
    student, teacher = load_shape(recipe.student, "student.path"), load_shape(recipe.teacher, "teacher.path")
    step = plan_step(recipe, student.vision, Assumption())
    return recipe, student, teacher, step.part(recipe.train.micro_batches)


def peak(*overrides: str, **execution: Any) -> int:
    recipe, student, teacher, part = large(*overrides)
    return plan_memory(recipe, student, teacher, part, Execution(device="cuda", **execution)).peak


def test_a_step_of_mixed_lengths_is_planned_within_its_tokens() -> None:
    overrides = ["train.packing=true", "data.mix_lengths=true", "train.steps=4"]
    recipe = load_config(Recipe, RECIPES / "miniature.yaml", overrides)
    step = plan_step(recipe, load_shape(recipe.student, "student.path").vision, Assumption())
    assert recipe.data.tokens_per_step / 2 < step.num_tokens <= recipe.data.tokens_per_step


def test_the_plan_is_printed(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe_path), "--tflops", "0.1", "--memory", "1"]) == 0
    text = capsys.readouterr().out
    for part in ("parameters", "optimizer states", "matching: maps", "peak", "seconds a step", "rows: question"):
        assert part in text


def test_the_plan_as_json_counts_the_real_model(
    recipe_path: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe_path), "--tflops", "0.1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    model = rope_gain.load_pretrained(model_folders["base"])
    vision = sum(parameter.numel() for parameter in model.base_model.visual.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    rope_gain.attach(model, load_config(Recipe, recipe_path).gain)
    gains = sum(parameter.numel() for parameter in model.parameters()) - total
    assert plan["parameters"]["student"] == total
    assert plan["parameters"]["trained"] == total - vision
    assert plan["parameters"]["frozen"] == vision
    assert plan["parameters"]["gains"] == gains
    assert plan["memory"]["always"]["student weights"] == 4 * total
    assert plan["step_seconds"] == pytest.approx(plan["flops"]["total"] / 1e11)


def test_the_rate_is_measured_where_none_is_given(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe_path), "train.device=cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flops_per_second"] > 1e8


def test_the_largest_step_is_one_that_the_run_has(recipe_path: Path, processor: Any) -> None:
    recipe = load_config(Recipe, recipe_path)
    step = plan_step(recipe, load_shape(recipe.student, "student.path").vision, Assumption())
    collate = Collator(processor, lambda *_, **__: (torch.zeros(3, 1, 1), torch.zeros(1)))
    source = make_source(recipe.data, seed=recipe.train.seed, count_tokens=collate.count_tokens)
    lengths = [[collate.count_tokens(each) for each in source.samples(index)] for index in range(recipe.train.steps)]
    assert step.num_tokens == max(len(step) * max(step) for step in lengths)


@pytest.mark.parametrize(
    ("name", "size", "max_tiles", "tokens"),
    [
        # The notes on the method: a 640x480 image is 391 tokens of Qwen2.5-VL.
        ("Qwen/Qwen2.5-VL-7B-Instruct", (640, 480), None, 391),
        ("Qwen/Qwen3-VL-8B-Instruct", (640, 480), None, 300),
        ("OpenGVLab/InternVL3-8B-hf", (640, 480), 1, 256),
        # Four by three tiles, and a thumbnail.
        ("OpenGVLab/InternVL3-8B-hf", (640, 480), None, 13 * 256),
        ("OpenGVLab/InternVL3-8B-hf", (448, 448), None, 256),
    ],
)
def test_tokens_of_an_image(name: str, size: tuple[int, int], max_tiles: int | None, tokens: int) -> None:
    vision = load_shape(ModelConfig(path=name, max_tiles=max_tiles), "student.path").vision
    assert image_tokens(size, vision) == (tokens, 4 * tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_that_trains_is_planned_at_its_real_sizes(architecture: str, tmp_path: Path) -> None:
    model, _ = build_tiny(find_gain_family(architecture))
    model.save_pretrained(tmp_path)
    shape = load_shape(ModelConfig(path=str(tmp_path)), "student.path")
    vision = [model.base_model.get_submodule(name) for name in find_family(model).vision]
    assert shape.parameters.total == sum(weight.numel() for weight in model.parameters())
    assert shape.parameters.vision == sum(weight.numel() for part in vision for weight in part.parameters())
    tower = dict(vision[0].named_parameters())
    [patches] = [weight for weight in tower.values() if weight.ndim >= 4]
    assert (shape.vision.hidden, shape.vision.patch_values) == (len(patches), patches[0].numel())
    into_mlp = [
        name
        for name, weight in tower.items()
        if ".mlp." in name and weight.shape == (shape.vision.mlp, shape.vision.hidden)
    ]
    assert len(into_mlp) == shape.vision.depth * (2 if shape.vision.is_gated else 1)


def test_linear_operations_are_those_that_torch_counts(
    recipe_path: Path, model_folders: dict[str, Path], processor: Any
) -> None:
    recipe = load_config(Recipe, recipe_path)
    student = load_shape(recipe.student, "student.path")
    model = rope_gain.load_pretrained(model_folders["base"])
    collate = Collator(processor, model.base_model.get_rope_index)
    source = make_source(recipe.data, seed=recipe.train.seed, count_tokens=collate.count_tokens)
    sample = source.samples(0)[:1]
    batch = collate(sample)
    signals = SignalModel(model, freeze_vision=True, feature_cache_bytes=2**20)
    signals.signals(batch, [])
    # The second time, the images come from the cache: what is left is the decoder.
    with FlopCounterMode(display=False) as counter:
        signals.signals(batch, [])
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    linear = sum(count for operator, count in counts.items() if "attention" not in operator)
    answers = int(batch.answer_BT.sum())
    step = replace(
        plan_step(recipe, student.vision, Assumption()),
        num_samples=1,
        sample_tokens=batch.num_tokens,
        answer_rows=answers,
    )
    planned = plan_compute(recipe, student, None, step)
    # Norms and biases are parameters that no product has: they are counted too.
    assert planned.forward_linear == pytest.approx(linear, rel=0.03)


def test_settings_that_save_memory_do() -> None:
    plain = peak()
    assert peak("train.gradient_checkpointing=false") > plain
    assert peak("train.micro_batches=1") > plain
    assert peak("student.dtype=bfloat16", "train.mixed_precision=no") < plain
    assert peak("lora.rank=16") < plain
    recorded = peak("teacher.recording=somewhere")
    assert recorded < plain - 60 * 2**30
    assert peak("teacher.recording=somewhere", num_processes=4, is_sharded=True) < recorded / 3
    # Each process has the whole teacher.
    assert plain - recorded < peak(num_processes=4, is_sharded=True) < plain * 2 / 3
    # Copies of the gradients are what processes exchange.
    assert peak(num_processes=4) > plain


def test_the_chunk_that_fits_is_the_largest_one() -> None:
    recipe, student, teacher, part = large("train.micro_batches=1")
    execution = Execution(device="cuda")
    limit = plan_memory(recipe, student, teacher, part, execution).peak + 3 * 2**30
    [fit] = [fit for fit in fit_matching(recipe, student, teacher, part, execution, limit) if fit.rows == "all"]
    assert fit.chunk_mib is not None
    assert fit.peak <= limit
    matching = replace(recipe.loss.matching, chunk_mib=fit.chunk_mib + 1)
    larger = replace(recipe, loss=replace(recipe.loss, matching=matching))
    assert plan_memory(larger, student, teacher, part, execution).peak > limit


def test_the_rows_that_fit_are_as_many_as_can_be() -> None:
    # Of so many layers that the losses are the largest moment of a step.
    layers = ", ".join(f"{{student: {layer}, teacher: {layer}}}" for layer in range(16))
    settings = ("train.micro_batches=1", "train.gradient_checkpointing=false", f"loss.matching.layers=[{layers}]")
    settings = (*settings, "loss.matching.chunk_mib=1")
    execution = Execution(device="cuda")
    limit = plan_memory(*large(*settings, "loss.matching.max_rows=6000"), execution).peak
    assert fit_rows(*large(*settings), execution, limit) == 6000
    assert fit_rows(*large(*settings), execution, 2**30) == 0
    # No more than the recipe looks at.
    assert fit_rows(*large(*settings, "loss.matching.max_rows=500"), execution, limit) == 500
    assert fit_rows(*large(*settings, "loss.matching.rows=question"), execution, limit) == Assumption().question_tokens


def test_what_fits_is_of_the_rows_that_the_recipe_draws() -> None:
    drawn = large("train.micro_batches=1", "loss.matching.max_rows=100")
    fits = fit_matching(*drawn, Execution(device="cuda"), 2**60)
    assert {fit.rows: fit.num_rows for fit in fits} == {"all": 100, "question": 48, "answer": 2}
    every = fit_matching(*large("train.micro_batches=1"), Execution(device="cuda"), 2**60)
    assert fits[0].peak < every[0].peak
    assert fits[1:] == every[1:]


@pytest.mark.parametrize(("top_k", "dtype"), [(None, "float32"), (8, "bfloat16")])
def test_recorded_signals_are_counted_as_they_come(
    recipe_path: Path, tmp_path: Path, processor: Any, top_k: int | None, dtype: str
) -> None:
    folder = tmp_path / "recording"
    kept = ["--top-k", str(top_k or "all"), "--dtype", dtype]
    assert main(["record", str(recipe_path), str(folder), "train.steps=1", *kept]) == 0
    recipe = load_config(Recipe, recipe_path, [f"teacher.recording={folder}", "train.steps=1"])
    assert recipe.teacher is not None
    teacher = open_recorded_teacher(recipe, processor)
    model = load_model(recipe.student, torch.device("cpu"))
    collate = Collator(processor, find_family(model).rope_index(model))
    source = make_source(recipe.data, seed=recipe.train.seed, count_tokens=collate.count_tokens)
    batch = collate(source.samples(0))
    signals = teacher.signals(batch, [2])
    parts: list[Any] = [signals.layers[2].q_BHTD, signals.layers[2].k_BKTD, signals.logits_NV]
    if signals.top_logits is not None:
        parts += [signals.top_logits.log_p_NK, signals.top_logits.token_NK, signals.top_logits.log_rest_N]
    num_samples, num_tokens = batch.input_ids_BT.shape
    shape = load_shape(recipe.teacher, "teacher.path")
    step = replace(
        plan_step(recipe, shape.vision, Assumption()),
        num_samples=1,
        sample_tokens=num_samples * num_tokens,
        answer_rows=int(batch.answer_BT.sum()),
    )
    # All logits are recorded up to the tokenizer's true size; the plan knows the model's.
    padding = 0 if top_k else 4 * step.answer_rows * (shape.decoder.vocabulary - len(processor.tokenizer))
    assert signal_bytes(recipe, shape, step) == sum(part.nbytes for part in parts) + padding


def test_a_recording_that_is_not_there_yet_is_one_by_default() -> None:
    recipe, _, teacher, part = large("teacher.recording=nowhere")
    live = signal_bytes(large()[0], teacher, part)
    logits = part.num_samples * part.answer_rows * (2 * teacher.decoder.vocabulary - (64 * 12 + 4))
    assert signal_bytes(recipe, teacher, part) == live - logits


def test_a_quantised_teacher_is_smaller() -> None:
    recipe, _, teacher, _ = large()
    whole = teacher_bytes(recipe, teacher)
    eight, four = (teacher_bytes(large(f"teacher.quantization=bitsandbytes_{bits}bit")[0], teacher) for bits in (8, 4))
    # Embeddings and head stay, 2.9 GiB of 62.3.
    assert 0.5 < eight / whole < 0.55
    assert 0.28 < four / whole < 0.31


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_teacher_has_the_planned_bytes(bits: int) -> None:
    overrides = ["teacher.path=miniature:teacher", f"teacher.quantization=bitsandbytes_{bits}bit"]
    recipe = load_config(Recipe, RECIPES / "miniature.yaml", overrides)
    assert recipe.teacher is not None
    model = load_model(recipe.teacher, torch.device("cpu"))
    planned = teacher_bytes(recipe, load_shape(recipe.teacher, "teacher.path"))
    # Scales of rows, and those of blocks, which transformers does not count.
    assert planned == pytest.approx(model.get_memory_footprint(return_buffers=False), rel=0.05)


def test_a_teacher_on_its_own_device_is_not_on_the_students() -> None:
    recipe, student, teacher, part = large("teacher.device=cuda:1")
    execution = Execution(device="cuda")
    memory = plan_memory(recipe, student, teacher, part, execution)
    beside = plan_memory(*large(), execution)
    assert memory.teacher_device["teacher weights"] == teacher_bytes(recipe, teacher)
    assert "teacher weights" not in memory.always
    assert not memory.teacher_phases
    assert memory.peak < beside.peak - 60 * 2**30
    assert sum(memory.teacher_device.values()) < beside.peak - memory.peak + 2**30
    for same in ("cuda", "cuda:0", "null"):
        assert plan_memory(*large(f"teacher.device={same}"), execution) == beside


def test_the_teachers_own_device_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SEVEN), "teacher.device=cuda:1", "--tflops", "400"]) == 0
    assert "on the teacher's own device, cuda:1" in capsys.readouterr().out


def test_where_nothing_fits_the_plan_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SEVEN), "--tflops", "400", "--memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "does not fit with chunk_mib 1" in text
    assert "add a lora block" in text


def test_longer_samples_are_fewer() -> None:
    recipe = load_config(Recipe, SEVEN)
    vision = load_shape(recipe.student, "student.path").vision
    step = plan_step(recipe, vision, Assumption(images=100))
    assert (step.num_samples, step.sample_tokens) == (1, 100 * 393 + 64)


def test_a_plan_without_a_teacher() -> None:
    overrides = ["teacher=null", "loss.lambda_laid=0", "loss.lambda_kl=0"]
    recipe = load_config(Recipe, SEVEN, overrides)
    plan = make_plan(recipe, assumption=Assumption(), execution=Execution(device="cuda"), tflops=400)
    assert plan.compute.teacher_linear == plan.compute.losses == 0
    assert not plan.memory.teacher_phases
    assert plan.to_dict()["parameters"]["teacher"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student.path=nobody/nothing"], "student.path: 'nobody/nothing', expected a folder with config.json"),
        (["--image-size", "640"], "--image-size: '640', expected width and height"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SEVEN), *arguments, "--tflops", "400"]) == 1
    assert message in capsys.readouterr().err
