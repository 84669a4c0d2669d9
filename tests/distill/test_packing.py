"""Samples in one row without padding: the same signals and the same training, for fewer tokens."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rope_gain
from distill.capture import enable_capture
from distill.cli import main
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.data.sample import Sample
from distill.families import ARCHITECTURES, find_family
from distill.miniature.items import make_item
from distill.model import SignalModel
from distill.signals import Signals
from rope_gain import RopeGainConfig
from rope_gain import families as gain_families
from tests.distill.test_parallel import assert_same_run, read_run
from tests.rope_gain.models import build_tiny

TEXT = Sample(messages=({"role": "user", "content": "what else is there?"},), answer="yes", name="text")


def sample(num_images: int) -> Sample:
    item = make_item(num_images, num_images, "open")
    return Sample(messages=tuple(item.messages()), answer=item.answer, name=f"{num_images} images")


def make_batch(model: Any, processor: Any) -> Batch:
    """Lengths from a few tokens to many, the longest neither first nor last."""
    return Collator(processor, find_family(model).rope_index(model))([sample(1), sample(12), TEXT, sample(3)])


def packed(batch: Batch) -> Batch:
    return dataclasses.replace(batch, is_packed=True)


def assert_same_signals(found: Signals, expected: Signals, batch: Batch) -> None:
    """`found` packed, `expected` padded."""
    torch.testing.assert_close(found.logits_NV, expected.logits_NV, rtol=1e-4, atol=1e-4)
    assert found.layers.keys() == expected.layers.keys()
    for layer, theirs in expected.layers.items():
        ours = found.layers[layer]
        for x_BHTD, expected_BHTD in ((ours.q_BHTD, theirs.q_BHTD), (ours.k_BKTD, theirs.k_BKTD)):
            assert x_BHTD.shape[::2] == (1, sum(batch.lengths))
            for x_HTD, expected_HTD in zip(
                packed(batch).by_sample(x_BHTD), batch.by_sample(expected_BHTD), strict=True
            ):
                real_HTD = expected_HTD[:, : x_HTD.shape[1]]
                torch.testing.assert_close(x_HTD, real_HTD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_s_packed_signals_equal_the_padded_ones(architecture: str) -> None:
    model, processor = build_tiny(gain_families.find_family(architecture))
    rope_gain.attach(model, RopeGainConfig(granularity="layer", position="log", reference_length=8))
    for gain in rope_gain.gain_modules(model).values():
        gain.query_b.data.fill_(0.3)
    batch = make_batch(model, processor)
    signals = SignalModel(model, freeze_vision=True, feature_cache_bytes=2**20)
    expected = signals.signals(batch, [0, 1])
    found = signals.signals(packed(batch), [0, 1])
    assert max(batch.lengths) > 5 * min(batch.lengths)
    assert_same_signals(found, expected, batch)

    one = signals.signals(without_ends(batch), [])
    answers = batch.answer_BT.sum(dim=1).tolist()
    differences = [
        (a - b).abs().max() for a, b in zip(one.logits_NV.split(answers), found.logits_NV.split(answers), strict=True)
    ]
    assert differences[0] < 1e-4
    assert min(differences[1:]) > 0.1


# What transformers' flex attention passes to torch, and what torch imports for it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_s_packed_signals_in_flex_attention_equal_the_padded_ones(architecture: str) -> None:
    """Forward and uncompiled: on a CPU it has no backward pass, and `train.attention` refuses it there."""
    model, processor = build_tiny(gain_families.find_family(architecture))
    batch = make_batch(model, processor)
    signals = SignalModel(model, freeze_vision=True, feature_cache_bytes=2**20)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = signals.signals(batch, [0, 1])
        enable_capture(model, "flex_attention")
        assert_same_signals(signals.signals(packed(batch), [0, 1]), expected, batch)


def without_ends(batch: Batch) -> Batch:
    """The packed row as if it were one sample."""
    inputs = packed(batch).model_inputs
    is_token_BT = torch.ones_like(inputs.input_ids_BT, dtype=torch.bool)
    return dataclasses.replace(
        batch,
        input_ids_BT=inputs.input_ids_BT,
        is_token_BT=is_token_BT,
        position_ids_3BT=inputs.position_ids_ABT[1:],
        answer_BT=inputs.answer_BT,
    )


def test_no_padding_runs_through_the_model(model_folders: dict[str, Path], processor: Any) -> None:
    model = rope_gain.load_pretrained(model_folders["base"])
    batch = make_batch(model, processor)
    signals = SignalModel(model, freeze_vision=True, feature_cache_bytes=2**20)
    shapes: list[torch.Size] = []
    model.base_model.language_model.layers[1].register_forward_pre_hook(
        lambda _, args: shapes.append(args[0].shape[:2])
    )
    for each in (batch, packed(batch)):
        signals.signals(each, [])
    lengths = [len(batch.input_ids_BT[i][batch.is_token_BT[i]]) for i in range(4)]
    assert shapes == [(4, max(lengths)), (1, sum(lengths))]
    assert batch.num_tokens == sum(lengths)


def test_no_mask_of_the_whole_row_is_made(model_folders: dict[str, Path], processor: Any) -> None:
    model = rope_gain.load_pretrained(model_folders["base"])
    batch = make_batch(model, processor)
    masks: list[Tensor | None] = []
    model.base_model.language_model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    SignalModel(model, freeze_vision=True, feature_cache_bytes=2**20).signals(packed(batch), [])
    assert masks == [None]


@pytest.fixture(scope="module")
def train(
    write_recipe: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Tensor]]]:
    """Trains with these overrides; returns the log and the student's tensors."""

    def run(*overrides: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        folder = tmp_path_factory.mktemp("run")
        assert main(["train", str(write_recipe(folder)), *overrides]) == 0
        return read_run(folder / "run")

    return run


@pytest.fixture(scope="module")
def whole(train: Any) -> Any:
    """A run without packing."""
    return train()


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.micro_batches=2", "train.gradient_checkpointing=true"]],
    ids=["in one piece", "in parts, recomputed"],
)
def test_packed_training_equals_padded_training(
    train: Any, whole: Any, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[torch.Size, list[int]]] = []
    run_model = SignalModel.signals

    def note(self: SignalModel, batch: Batch, layers: Collection[int]) -> Signals:
        signals = run_model(self, batch, layers)
        shapes.extend((layer.q_BHTD.shape[::2], batch.lengths) for layer in signals.layers.values())
        return signals

    monkeypatch.setattr(SignalModel, "signals", note)
    assert_same_run(train("train.packing=true", *overrides), whole)
    assert all(shape == (1, sum(lengths)) for shape, lengths in shapes)
    assert any(len(set(lengths)) > 1 for _, lengths in shapes)


def test_packed_training_of_adapters_with_drawn_rows_equals_padded_training(train: Any) -> None:
    settings = ["lora={rank: 2, alpha: 4}", "loss.matching.rows=all", "loss.matching.max_rows=7"]
    assert_same_run(train("train.packing=true", *settings), train(*settings))


def test_steps_of_mixed_lengths_in_two_processes_equal_those_in_one(
    write_recipe: Callable[[Path], Path], tmp_path: Path, train: Any
) -> None:
    mixed = ["train.packing=true", "data.mix_lengths=true", "loss.matching.rows=all"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, "-m", "distill", "train", str(write_recipe(tmp_path)), *mixed, "train.micro_batches=2"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert_same_run(read_run(tmp_path / "run"), train(*mixed))


@pytest.mark.parametrize(("recorded", "trained"), [("false", "true"), ("true", "false"), ("true", "true")])
def test_a_recording_serves_packed_and_padded_training(
    write_recipe: Callable[[Path], Path], tmp_path: Path, whole: Any, recorded: str, trained: str
) -> None:
    recipe, recording = str(write_recipe(tmp_path)), str(tmp_path / "recording")
    exact = ["--top-k", "all", "--dtype", "float32"]
    assert main(["record", recipe, recording, f"train.packing={recorded}", *exact]) == 0
    assert main(["train", recipe, f"teacher.recording={recording}", f"train.packing={trained}"]) == 0
    assert_same_run(read_run(tmp_path / "run"), whole)
    laid = json.loads((tmp_path / "run" / "student" / "laid.json").read_text())
    assert laid["recipe"]["train"]["packing"] is (trained == "true")
