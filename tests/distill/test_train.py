"""The whole verb on tiny models: a recipe in, a checkpoint out."""

import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rope_gain
from distill.checkpoint import read_laid
from distill.cli import main
from distill.config import load_config
from distill.interrupt import StopRequest
from distill.miniature.items import make_item
from distill.recipe import Recipe
from rope_gain.families import find_family
from tests.rope_gain.models import build_tiny


def log_entries(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(rope_gain.load_pretrained(folder / "student").state_dict())


@pytest.fixture
def recipe_path(write_recipe: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def trained(write_recipe: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run, to look at; nobody writes into it."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", str(write_recipe(folder))]) == 0
    return folder / "run"


def test_the_checkpoint_loads_and_carries_its_history(trained: Path, model_folders: dict[str, Path]) -> None:
    student = trained / "student"
    assert sorted(path.name for path in trained.iterdir()) == ["laid", "log.jsonl", "student"]
    files = {path.name for path in student.iterdir()}
    assert {"laid.safetensors", "laid.json", "chat_template.jinja", "tokenizer.json", "generation_config.json"} <= files
    assert {"README.md", "training.png"} <= files
    assert "model.safetensors" not in files
    record = read_laid(student)
    assert record is not None
    assert record["kind"] == "student"
    assert record["training"]["steps"] == 6
    assert set(record["training"]["losses"]) == {"sft", "kl", "alignment", "matching"}
    assert re.fullmatch("[0-9a-f]{64}", record["teacher"]["sha256"])
    assert record["recipe"]["train"]["seed"] == 7
    model = rope_gain.load_pretrained(student)
    stock = rope_gain.load_pretrained(model_folders["base"])
    assert not torch.equal(model.lm_head.weight, stock.lm_head.weight)
    assert torch.equal(model.base_model.visual.merger.mlp[0].weight, stock.base_model.visual.merger.mlp[0].weight)
    gain = rope_gain.gain_modules(model)[1]
    assert gain.query_b.abs().min() > 0
    assert gain.key_a.abs().min() > 0


def test_the_log_has_every_term_of_every_step(trained: Path) -> None:
    entries = log_entries(trained)
    assert [entry["step"] for entry in entries] == list(range(6))
    assert [entry["gamma"] for entry in entries] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for entry in entries:
        terms = entry["losses"]
        expected = terms["sft"] + terms["kl"] + 0.5 * (terms["alignment"] + terms["matching"])
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
        assert entry["tokens"] > 0


def test_the_model_card_tells_what_was_done(trained: Path, model_folders: dict[str, Path]) -> None:
    _, header, text = (trained / "student" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == str(model_folders["base"])
    entries = log_entries(trained)
    assert f"| teacher | `{model_folders['teacher']}` |" in text
    assert f"| samples, images | {sum(e['samples'] for e in entries)}, {sum(e['images'] for e in entries)} |" in text
    with Image.open(trained / "student" / "training.png") as curve:
        assert curve.size[0] > 500


def test_tensorboard_gets_every_step(trained: Path) -> None:
    accumulator = EventAccumulator(str(trained / "laid")).Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("losses/matching")]
    expected = [(entry["step"], entry["losses"]["matching"]) for entry in log_entries(trained)]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_refused(
    recipe_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", str(recipe_path), "train.trackers=[wandb]"]) == 1
    assert "pip install wandb" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_folder_of_runs_is_not_a_tracker(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m distill` finds what is in the working directory, where W&B may have left such a folder."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["train", str(recipe_path), "train.trackers=[wandb]"]) == 1
    assert "pip install wandb" in capsys.readouterr().err


def test_no_tracker_is_needed(recipe_path: Path, tmp_path: Path) -> None:
    assert main(["train", str(recipe_path), "train.trackers=[]", "train.steps=1", f"output={tmp_path / 'run'}"]) == 0
    assert not (tmp_path / "run" / "laid").exists()


def test_a_family_that_cannot_be_distilled_is_refused(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = build_tiny(find_family("LlavaOnevisionForConditionalGeneration"))
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    assert main(["train", str(recipe_path), f"student.path={tmp_path / 'llava'}"]) == 1
    message = capsys.readouterr().err
    assert "llava: got LlavaOnevisionForConditionalGeneration, expected one that can be distilled: Qwen2VL" in message
    assert "InternVLForConditionalGeneration" in message


def test_the_exported_model_is_the_trained_one(recipe_path: Path, tmp_path: Path, processor: Any) -> None:
    from distill.assembly import assemble
    from distill.export import export_student

    recipe = load_config(Recipe, recipe_path, ["train.steps=3"])
    run = assemble(recipe, state_path=tmp_path / "state.pt", log_path=tmp_path / "log.jsonl")
    with StopRequest() as stop:
        assert run.trainer.run(stop)
    report = {"training": {"seconds": 1.0}, "log": run.trainer.log_entries()}
    export_student(tmp_path / "student", model=run.model, processor=run.processor, recipe=recipe, **report)
    loaded = rope_gain.load_pretrained(tmp_path / "student", attn_implementation="sdpa")
    inputs = processor.apply_chat_template(
        make_item(0, 4, "open").messages(), return_tensors="pt", return_dict=True, tokenize=True
    )
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, run.model.eval()(**inputs).logits)


def test_without_a_gain_and_a_teacher_it_writes_a_stock_checkpoint(recipe_path: Path, tmp_path: Path) -> None:
    overrides = ["gain=null", "teacher=null", "loss.lambda_kl=0", "loss.lambda_laid=0", "train.steps=1"]
    assert main(["train", str(recipe_path), *overrides]) == 0
    student = tmp_path / "run" / "student"
    assert (student / "model.safetensors").exists()
    assert "rope_gain" not in json.loads((student / "config.json").read_text())
    record = read_laid(student)
    assert record is not None
    assert record["teacher"] is None


def test_a_jsonl_file_trains_too(recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_item(0, 2, "open").images
    lines = []
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
        parts = [
            {"type": "image_url", "image_url": {"url": f"{index}.png"}},
            {"type": "text", "text": "what is there?"},
        ]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red circle"}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    overrides = ["data.miniature=null", f"data.jsonl.path={tmp_path / 'data.jsonl'}", "train.steps=2"]
    assert main(["train", str(recipe_path), *overrides]) == 0
    assert capsys.readouterr().out.endswith(f"make serve MODEL={tmp_path / 'run' / 'student'}\n")
    assert [entry["images"] for entry in log_entries(tmp_path / "run")] == [2, 2]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Presses Ctrl-C while the given step runs."""
    from distill.trainer import Trainer

    update = Trainer._update

    def press(step: int) -> None:
        def pressing(trainer: Trainer, *inputs: Any) -> Any:
            if trainer.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return update(trainer, *inputs)

        monkeypatch.setattr(Trainer, "_update", pressing)

    return press


@pytest.mark.parametrize("step", [0, 3])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    trained: Path, recipe_path: Path, tmp_path: Path, stop_after: Any, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    again = tmp_path / "again"
    arguments = ["train", str(recipe_path), f"output={again}"]
    stop_after(step)
    assert main(arguments) == 130
    message = capsys.readouterr().err
    assert f"stopped at step {step + 1} of 6" in message
    assert f"distill train {recipe_path} output={again} --resume" in message
    assert not (again / "student").exists()
    assert main([*arguments, "--resume"]) == 0
    assert log_entries(again) == log_entries(trained)
    expected, actual = weights(trained), weights(again)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_a_killed_run_resumes_from_its_last_saved_state(
    trained: Path, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in step 3, after the state of step 2 was saved and step 2 itself was logged."""
    from distill.trainer import Trainer

    update = Trainer._update

    def crash(trainer: Trainer, *inputs: Any) -> Any:
        if trainer.step == 3:
            raise MemoryError
        return update(trainer, *inputs)

    arguments = ["train", str(recipe_path), f"output={tmp_path / 'again'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", crash)
        with pytest.raises(MemoryError):
            main(arguments)
    assert len(log_entries(tmp_path / "again")) == 3
    assert main([*arguments, "--resume"]) == 0
    assert log_entries(tmp_path / "again") == log_entries(trained)
    assert all(torch.equal(weights(tmp_path / "again")[name], value) for name, value in weights(trained).items())


def test_resuming_under_another_recipe_is_refused(
    recipe_path: Path, stop_after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(0)
    assert main(["train", str(recipe_path)]) == 130
    assert main(["train", str(recipe_path), "train.seed=8", "gain.position=static", "--resume"]) == 1
    message = capsys.readouterr().err
    assert "gain.position was 'log', is 'static'; train.seed was 7, is 8" in message
    assert main(["train", str(recipe_path)]) == 1
    assert "holds an unfinished run, expected --resume" in capsys.readouterr().err


def test_a_finished_run_is_kept(trained: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(recipe_path), f"output={trained}"]
    assert main(arguments) == 1
    assert "exists, expected another folder" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert capsys.readouterr().out.endswith(f"make serve MODEL={trained / 'student'}\n")


def test_models_that_see_different_inputs_are_refused(
    recipe_path: Path, model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "teacher"
    other.mkdir()
    for path in model_folders["teacher"].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "user"))
    assert main(["train", str(recipe_path), f"teacher.path={other}"]) == 1
    assert "expected the same tokenizer and chat template" in capsys.readouterr().err


def test_an_unknown_setting_is_refused_before_anything_is_loaded(
    recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_path), "train.step=3"]) == 1
    assert "command line: train.step: unknown key; did you mean 'steps'?" in capsys.readouterr().err


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
