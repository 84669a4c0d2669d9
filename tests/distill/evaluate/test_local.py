import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from distill.evaluate.item import MAX_NEW_TOKENS, DrawnPicture, Item
from distill.evaluate.local import LocalRunner
from distill.evaluate.measure import Answered
from distill.evaluate.tasks import MiniatureTask
from rope_gain import RopeGainConfig, attach, gain_modules, load_pretrained, save_pretrained

# Of 4, 8, 14 and 6 image tokens; each image has two boundary tokens as well.
SHAPES = ((64, 16), (32, 64), (112, 32), (48, 32))


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Prompts of three images and, mixed up, of two lengths."""
    task = MiniatureTask(kind="open", seed=1)
    short = [task.item(3, index) for index in range(6)]
    return [replace(item, parts=(*item.parts, " Now.")) if i % 2 else item for i, item in enumerate(short)]


@pytest.fixture(scope="module")
def plain_answers(random_checkpoint: Path, items: Sequence[Item]) -> list[tuple[str, int]]:
    """Text and prompt tokens by transformers alone, one item at a time."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor: Any = AutoProcessor.from_pretrained(random_checkpoint)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_checkpoint)
    answers = []
    for item in items:
        text = processor.apply_chat_template(item.messages(), add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=list(item.images), return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        num_tokens = inputs["input_ids"].shape[1]
        answers.append((processor.decode(output[0, num_tokens:], skip_special_tokens=True), num_tokens))
    return answers


def answers(checkpoint: Path, items: Sequence[Item]) -> list[tuple[str, int]]:
    done: list[Answered] = []
    found = LocalRunner(checkpoint).answer(items, done.append)
    assert {(each.item.index, each.answer.text) for each in done} == {
        (item.index, answer.text) for item, answer in zip(items, found, strict=True)
    }
    return [(answer.text, answer.prompt_tokens) for answer in found]


def test_batches_answer_as_plain_transformers_does_one_by_one(
    random_checkpoint: Path, items: Sequence[Item], plain_answers: list[tuple[str, int]]
) -> None:
    assert answers(random_checkpoint, items) == plain_answers
    # Otherwise mixed-up answers would go unseen.
    assert len({text for text, _ in plain_answers}) == len(items)
    assert len({num_tokens for _, num_tokens in plain_answers}) == 2


def test_images_of_unequal_sizes_are_batched_by_what_they_become(random_checkpoint: Path) -> None:
    """Prompts of one length from images of other shapes, prompts of other lengths, and one without any image."""
    rng = random.Random(0)
    pixels = [Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])) for size in SHAPES]
    parts = [tuple(DrawnPicture(pixels[place]) for place in places) for places in ((0, 1), (1, 0), (2,), (3, 1), ())]
    items = [
        Item(size=1, index=index, parts=(*each, "What?"), answer="x", legal_answers=None, needle_index=0)
        for index, each in enumerate(parts)
    ]
    found = answers(random_checkpoint, items)
    assert found == [answers(random_checkpoint, [item])[0] for item in items]
    lengths = [num_tokens for _, num_tokens in found]
    assert lengths[0] == lengths[1] == lengths[2] != lengths[3]


def test_small_batches_answer_alike(
    random_checkpoint: Path,
    items: Sequence[Item],
    plain_answers: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distill.evaluate.local._BATCH_TOKENS", 100)
    assert answers(random_checkpoint, items) == plain_answers


def test_the_checkpoints_sampling_defaults_do_not_count(
    random_checkpoint: Path, items: Sequence[Item], plain_answers: list[tuple[str, int]], tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(random_checkpoint, tmp_path / "sampling"))
    file = checkpoint / "generation_config.json"
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5, "repetition_penalty": 2.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | sampling))
    assert answers(checkpoint, items) == plain_answers


@pytest.mark.parametrize(("gain", "same"), [(0.0, True), (1.5, False)], ids=["gain of one", "large gain"])
def test_the_gains_of_a_checkpoint_are_at_work(
    random_checkpoint: Path,
    items: Sequence[Item],
    plain_answers: list[tuple[str, int]],
    tmp_path: Path,
    gain: float,
    same: bool,
) -> None:
    ignored = shutil.ignore_patterns("*.safetensors", "config.json")
    checkpoint = Path(shutil.copytree(random_checkpoint, tmp_path / "gained", ignore=ignored))
    model = load_pretrained(random_checkpoint)
    attach(model, RopeGainConfig())
    with torch.no_grad():
        for module in gain_modules(model).values():
            for parameter in module.parameters():
                parameter.fill_(gain)
    save_pretrained(model, checkpoint)
    assert (answers(checkpoint, items) == plain_answers) is same
