"""The verbs on a tiny InternVL3: text, one tile and many tiles an image."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import rope_gain
from distill.cli import main
from distill.config import load_config
from distill.evaluate.local import LocalRunner
from distill.evaluate.measure import MAX_NEW_TOKENS
from distill.evaluate.tasks import MiniatureTask
from distill.interrupt import StopRequest
from distill.recipe import Recipe
from rope_gain.families.internvl import INTERNVL
from tests.rope_gain.models import build_tiny, internvl_config, sharpen

SIZES = [(32, 32), (64, 32), (30, 90), (128, 128)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student, and a teacher with more layers."""
    student, processor = build_tiny(INTERNVL)
    settings = internvl_config(processor.tokenizer).to_dict()
    settings["text_config"] |= {"num_hidden_layers": 3, "layer_types": None}
    torch.manual_seed(1)
    teacher = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(**settings)).float()
    with torch.no_grad():
        for layer in teacher.get_submodule(INTERNVL.decoder).layers:
            sharpen(layer.self_attn)
    paths = {}
    for name, model in (("student", student), ("teacher", teacher)):
        paths[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(paths[name])
        processor.save_pretrained(paths[name])
    return paths


@pytest.fixture(scope="module")
def recipe_path(
    folders: dict[str, Path], write_recipe: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three steps over conversations without images, with one, and with several of different shapes."""
    folder = tmp_path_factory.mktemp("recipe")
    noise = random.Random(0)
    lines = []
    for number, sizes in enumerate([[], SIZES[:1], SIZES[1:3], SIZES, SIZES[2:], SIZES[:2]]):
        parts: list[dict[str, Any]] = []
        for index, size in enumerate(sizes):
            Image.frombytes("RGB", size, noise.randbytes(3 * size[0] * size[1])).save(folder / f"{number}-{index}.png")
            parts.append({"type": "image_url", "image_url": {"url": f"{number}-{index}.png"}})
        parts.append({"type": "text", "text": f"what is there? {number}"})
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red circle"}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    path = write_recipe(folder)
    text = path.read_text().replace("steps: 6", "steps: 3")
    start, end = text.index("student:"), text.index("gain:")
    text = (
        f"{text[:start]}student: {{path: {folders['student']}}}\nteacher: {{path: {folders['teacher']}}}\n{text[end:]}"
    )
    start, end = text.index("  miniature:"), text.index("train:")
    data = f"  max_samples_per_step: 2\n  jsonl: {{path: {folder / 'data.jsonl'}}}\n"
    path.write_text(text[:start] + data + text[end:])
    return path


@pytest.fixture(scope="module")
def trained(recipe_path: Path) -> Path:
    assert main(["train", str(recipe_path)]) == 0
    return recipe_path.parent / "run"


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in (folder / "log.jsonl").read_text().splitlines()]


def num_tokens(folder: Path) -> int:
    return sum(json.loads(line)["tokens"] for line in (folder / "log.jsonl").read_text().splitlines())


def test_it_trains_with_every_loss_and_leaves_the_tower_alone(trained: Path, folders: dict[str, Path]) -> None:
    terms = losses(trained)
    assert len(terms) == 3
    assert all(value > 0 for step in terms for value in step.values())
    assert set(terms[0]) == {"sft", "kl", "alignment", "matching"}
    stock = rope_gain.load_pretrained(folders["student"]).state_dict()
    student = rope_gain.load_pretrained(trained / "student").state_dict()
    changed = {name for name, value in stock.items() if not torch.equal(student[name], value)}
    assert "lm_head.weight" in changed
    assert not any(name.startswith(("model.vision_tower", "model.multi_modal_projector")) for name in changed)
    assert student["model.language_model.layers.1.self_attn.rope_gain.key_b"].abs().min() > 0
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in changed


def test_the_exported_model_is_the_trained_one(recipe_path: Path, tmp_path: Path) -> None:
    from distill.assembly import assemble
    from distill.export import export_student

    recipe = load_config(Recipe, recipe_path)
    run = assemble(recipe, state_path=tmp_path / "state.pt", log_path=tmp_path / "log.jsonl")
    with StopRequest() as stop:
        assert run.trainer.run(stop)
    report = {"training": {"seconds": 1.0}, "log": run.trainer.log_entries()}
    export_student(tmp_path / "student", model=run.model, processor=run.processor, recipe=recipe, **report)
    loaded = rope_gain.load_pretrained(tmp_path / "student", attn_implementation="sdpa")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "student")
    inputs = processor.apply_chat_template(
        MiniatureTask(kind="open", seed=0).item(3, 0).messages(), return_tensors="pt", return_dict=True, tokenize=True
    )
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, run.model.eval()(**inputs).logits)


def test_training_from_a_recording_equals_live_training(trained: Path, recipe_path: Path, tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    assert main(["record", str(recipe_path), str(recording), "--top-k", "all", "--dtype", "float32"]) == 0
    overrides = [f"teacher.recording={recording}", f"output={tmp_path / 'run'}"]
    assert main(["train", str(recipe_path), *overrides]) == 0
    for found, expected in zip(losses(tmp_path / "run"), losses(trained), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("verb", ["train", "record"])
def test_a_teacher_that_cuts_images_otherwise_is_refused_by_the_sample_s_name(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    arguments = [str(tmp_path / "recording")] if verb == "record" else []
    assert main([verb, str(recipe_path), *arguments, "teacher.max_tiles=1", f"output={tmp_path / 'run'}"]) == 1
    message = capsys.readouterr().err
    assert "data.jsonl:" in message
    assert "has the grid [" in message
    assert "[1, 32, 32] for the teacher; expected image processors with equal settings" in message


def test_a_student_keeps_its_number_of_tiles(
    recipe_path: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["student.max_tiles=1", "teacher.max_tiles=1", f"output={tmp_path}"]
    assert main(["train", str(recipe_path), *overrides]) == 0
    # The gateway does not count this family's tokens.
    assert capsys.readouterr().out.endswith(f"serve it with: vllm serve {tmp_path / 'student'}\n")
    # An epoch each: the same samples.
    assert num_tokens(tmp_path) < num_tokens(trained)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "student")
    assert len(processor(text=processor.image_token, images=Image.new("RGB", (64, 32)))["pixel_values"]) == 1


def test_max_tiles_of_a_family_without_tiles_is_refused(
    write_recipe: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write_recipe(tmp_path)), "student.max_tiles=1"]) == 1
    assert "max_tiles: 1, expected none: Qwen2_5_VLProcessor does not cut images" in capsys.readouterr().err


def test_a_checkpoint_answers_as_plain_generation_does(tmp_path: Path) -> None:
    model, processor = build_tiny(INTERNVL)
    # A plain random model, whose head is its embeddings, repeats the prompt's last token.
    for parameter in model.get_submodule(INTERNVL.decoder).layers.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    task = MiniatureTask(kind="open", seed=1)
    items = [task.item(size, index) for index in range(3) for size in (1, 3)]
    answers = LocalRunner(tmp_path).answer(items, lambda _: None)
    found = [(answer.text, answer.prompt_tokens) for answer in answers]
    for item, (text, prompt_tokens) in zip(items, found, strict=True):
        prompt = processor.apply_chat_template(item.messages(), add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[prompt], images=list(item.images), return_tensors="pt")
        output_BT = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        assert prompt_tokens == inputs["input_ids"].shape[1]
        assert text == processor.decode(output_BT[0, prompt_tokens:], skip_special_tokens=True)
    # Otherwise mixed-up answers would go unseen.
    assert len({text for text, _ in found}) == len(items)


def test_the_other_verbs_take_it(
    trained: Path, recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = trained / "student"
    evaluation = ["--sizes", "1", "2", "--items", "2", "--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(student), *evaluation]) == 0
    assert main(["inspect", str(student)]) == 0
    assert main(["fold", str(student), str(tmp_path / "folded"), "--partial"]) == 0
    assert main(["plan", str(recipe_path), "--tflops", "1"]) == 0
    assert "peak" in capsys.readouterr().out
