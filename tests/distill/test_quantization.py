"""A live teacher in fewer bits. What needs a package runs where the package is."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rope_gain
from distill.cli import main
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.families import find_family
from distill.loading import load_model, make_source
from distill.model import Teacher
from distill.recipe import DataConfig, MiniatureData, Quantization, SizeRange, TeacherConfig
from distill.recording.manifest import read_manifest

CPU = torch.device("cpu")

# Relative error in the norm of the signals, twice what the miniature teacher has.
ERRORS: dict[Quantization, float] = {
    "torchao_int8": 0.02,
    "torchao_float8": 0.075,
    "bitsandbytes_8bit": 0.03,
    "bitsandbytes_4bit": 0.26,
}


@pytest.fixture(scope="module")
def miniature_batch(processor: Any) -> Batch:
    """Two haystacks for the miniature teacher."""
    model = load_model(TeacherConfig(path="miniature:teacher"), CPU)
    collate = Collator(processor, find_family(model).rope_index(model))
    config = DataConfig(tokens_per_step=400, miniature=MiniatureData(sizes=(SizeRange(least=4, most=8),)))
    source = make_source(config, seed=1, count_tokens=collate.count_tokens)
    return collate(source.samples(0)[:2])


def needs(name: str) -> Any:
    package = name.partition("_")[0]
    reason = f"{package} is not installed"
    return pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("name", [needs(name) for name in ERRORS])
def test_signals_are_close_to_those_of_the_whole_teacher(name: Quantization, miniature_batch: Batch) -> None:
    signals = {}
    for quantization in (None, name):
        model = load_model(TeacherConfig(path="miniature:teacher", quantization=quantization), CPU)
        signals[quantization] = Teacher(model, feature_cache_bytes=0).signals(miniature_batch, [2])
    whole, quantised = signals[None], signals[name]
    errors = {
        "q": relative_error(quantised.layers[2].q_BHTD, whole.layers[2].q_BHTD),
        "k": relative_error(quantised.layers[2].k_BKTD, whole.layers[2].k_BKTD),
        "logits": relative_error(quantised.logits_NV, whole.logits_NV),
    }
    print(name, {place: f"{error:.2%}" for place, error in errors.items()})
    assert all(0 < error < ERRORS[name] for error in errors.values())


@pytest.mark.parametrize("name", [needs(name) for name in ERRORS])
def test_a_teacher_with_gains_is_quantised_too(name: Quantization, miniature_batch: Batch, tmp_path: Path) -> None:
    model = load_model(TeacherConfig(path="miniature:teacher"), CPU)
    rope_gain.attach(model, rope_gain.RopeGainConfig(granularity="layer_frequency", position="log"))
    for key, parameter in model.named_parameters():
        if "rope_gain" in key:
            parameter.data.fill_(0.1)
    rope_gain.save_pretrained(model, tmp_path)
    whole = Teacher(model, feature_cache_bytes=0).signals(miniature_batch, [2])
    quantised = load_model(TeacherConfig(path=str(tmp_path), quantization=name), CPU)
    gains = {key: value for key, value in quantised.named_parameters() if "rope_gain" in key}
    assert gains
    assert all(value.dtype == torch.float32 and (value == 0.1).all() for value in gains.values())
    signals = Teacher(quantised, feature_cache_bytes=0).signals(miniature_batch, [2])
    assert 0 < relative_error(signals.layers[2].q_BHTD, whole.layers[2].q_BHTD) < ERRORS[name]


@pytest.mark.parametrize("name", [needs("torchao_int8"), needs("bitsandbytes_4bit")])
def test_a_quantised_teacher_trains_and_is_recorded(
    name: Quantization, write_recipe: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path))
    short = ["train.steps=2", f"teacher.quantization={name}"]
    assert main(["train", recipe, *short]) == 0
    exact = ["--top-k", "all", "--dtype", "float32"]
    folder = tmp_path / "recording"
    assert main(["record", recipe, str(folder), *short, *exact]) == 0
    assert read_manifest(folder).teacher["quantization"] == name
    recorded = [*short, f"teacher.recording={folder}", f"output={tmp_path / 'recorded'}"]
    assert main(["train", recipe, *recorded]) == 0
    live, again = (
        [json.loads(line)["losses"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("run", "recorded")
    )
    assert again == [pytest.approx(terms, rel=1e-6, abs=1e-6) for terms in live]
    capsys.readouterr()
    assert main(["train", recipe, *recorded, "teacher.quantization=null", f"output={tmp_path / 'other'}"]) == 1
    assert f"teacher.quantization was '{name}', is None" in capsys.readouterr().err


@pytest.mark.parametrize("name", ERRORS)
def test_a_package_that_is_missing_is_named(
    name: Quantization,
    write_recipe: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package = name.partition("_")[0]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked, *rest: None if asked == package else find_spec(asked, *rest)
    )
    assert main(["train", str(write_recipe(tmp_path)), f"teacher.quantization={name}"]) == 1
    message = capsys.readouterr().err
    assert f"teacher.quantization: '{name}' needs {package}, which is not installed" in message
    assert f"pip install {package}" in message


def test_a_recording_of_another_quantization_is_refused(
    write_recipe: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path))
    assert main(["record", recipe, str(tmp_path / "recording"), "train.steps=1"]) == 0
    settings = [f"teacher.recording={tmp_path / 'recording'}", "train.steps=1", "teacher.quantization=torchao_int8"]
    assert main(["train", recipe, *settings]) == 1
    assert "teacher.quantization was None, is 'torchao_int8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.quantization=gguf", "teacher.quantization: 'gguf', expected one of bitsandbytes_4bit"),
        ("student.quantization=torchao_int8", "student.quantization: unknown key"),
    ],
)
def test_what_cannot_be_is_refused(
    write_recipe: Callable[[Path], Path],
    tmp_path: Path,
    override: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", str(write_recipe(tmp_path)), override]) == 1
    assert message in capsys.readouterr().err
