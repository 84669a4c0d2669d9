from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rope_gain
from distill.data.collate import Collator
from distill.data.sample import Sample
from distill.families import ARCHITECTURES, find_family
from distill.miniature.items import make_item
from distill.model import SignalModel, Teacher
from rope_gain.families import find_family as find_gain_family
from tests.rope_gain.models import build_tiny

QWEN, INTERNVL = "Qwen2_5_VLForConditionalGeneration", "InternVLForConditionalGeneration"


def sample(num_images: int, *, kind: str = "open", size: tuple[int, int] | None = None) -> Sample:
    item = make_item(num_images, num_images, kind)
    parts = item.messages()[0]["content"]
    if size is not None:
        parts[0]["image"] = parts[0]["image"].resize(size)
    return Sample(messages=({"role": "user", "content": parts},), answer=item.answer, name=f"{num_images} images")


def stock_logits(model: Any, processor: Any, each: Sample) -> torch.Tensor:
    """Logits on the answer by the model's and the processor's ordinary way, one sample at a time."""
    prompt = processor.apply_chat_template(list(each.messages), tokenize=False, add_generation_prompt=True)
    images = each.images or None
    prompt_length = processor(text=[prompt], images=images)["input_ids"]
    inputs = processor(
        text=[prompt + each.answer + "<|im_end|>"],
        images=images,
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )
    return model(**inputs).logits[0, len(prompt_length[0]) - 1 : -1]


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_answer_logits_equal_the_stock_way(model_folders: dict[str, Path], processor: Any, freeze_vision: bool) -> None:
    """A padded batch with images of different sizes, one image that comes twice, and a sample without images."""
    model = rope_gain.load_pretrained(model_folders["base"])
    text = Sample(messages=({"role": "user", "content": "what else is there?"},), answer="yes", name="text")
    samples = [sample(3), sample(1, size=(64, 96)), text, sample(3)]
    expected = torch.cat([stock_logits(model, processor, each) for each in samples])
    batch = Collator(processor, model.base_model.get_rope_index)(samples)
    signals = SignalModel(model, freeze_vision=freeze_vision, feature_cache_bytes=2**20)
    for _ in range(2):
        torch.testing.assert_close(signals.signals(batch, []).logits_NV, expected, rtol=1e-4, atol=1e-5)
    answers = [processor.tokenizer(each.answer + "<|im_end|>")["input_ids"] for each in samples]
    assert batch.answer_ids.tolist() == [token for answer in answers for token in answer]


@pytest.mark.parametrize("freeze_vision", [True, False], ids=["frozen tower", "tower in training"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_s_signals_equal_the_stock_way(architecture: str, freeze_vision: bool) -> None:
    model, processor = build_tiny(find_gain_family(architecture))
    text = Sample(messages=({"role": "user", "content": "what else is there?"},), answer="yes", name="text")
    samples = [sample(3), sample(1, size=(64, 96)), text, sample(4, size=(90, 20))]
    expected = torch.cat([stock_logits(model, processor, each) for each in samples])
    batch = Collator(processor, find_family(model).rope_index(model))(samples)
    signals = SignalModel(model, freeze_vision=freeze_vision, feature_cache_bytes=2**20)
    for _ in range(2):
        found = signals.signals(batch, [0, 1])
        torch.testing.assert_close(found.logits_NV, expected, rtol=1e-4, atol=1e-4)
    assert set(found.layers) == {0, 1}


@pytest.mark.parametrize("architecture", [QWEN, INTERNVL])
def test_a_tower_in_training_gets_gradients_and_a_frozen_one_none(architecture: str) -> None:
    for freeze_vision in (False, True):
        model, processor = build_tiny(find_gain_family(architecture))
        family = find_family(model)
        batch = Collator(processor, family.rope_index(model))([sample(2)])
        signals = SignalModel(model, freeze_vision=freeze_vision, feature_cache_bytes=2**20).signals(batch, [1])
        (signals.logits_NV.sum() + signals.layers[1].q_BHTD.sum()).backward()
        for part in family.vision:
            gradients = [parameter.grad for parameter in model.base_model.get_submodule(part).parameters()]
            assert any(gradient is not None for gradient in gradients) is not freeze_vision


@pytest.mark.parametrize(
    ("architecture", "entry", "per_image"),
    [(QWEN, "visual.patch_embed", 16), (INTERNVL, "vision_tower.embeddings.patch_embeddings", 1)],
    ids=["patches", "tiles"],
)
def test_a_frozen_tower_runs_once_per_distinct_image(architecture: str, entry: str, per_image: int) -> None:
    model, processor = build_tiny(find_gain_family(architecture))
    signals = SignalModel(model, freeze_vision=True, feature_cache_bytes=2**20)
    collate = Collator(processor, find_family(model).rope_index(model))
    counts: list[int] = []
    model.base_model.get_submodule(entry).register_forward_hook(lambda *call: counts.append(len(call[1][0])))
    same = Image.new("RGB", (32, 32), (10, 20, 30))
    parts = [{"type": "image", "image": same}, {"type": "image", "image": same.copy()}, {"type": "text", "text": "?"}]
    twice = Sample(messages=({"role": "user", "content": parts},), answer="no", name="twice")
    for samples in ([twice], [twice, sample(2)], [sample(2)]):
        signals.signals(collate(samples), [])
    assert counts == [per_image, 2 * per_image]


def test_a_small_cache_changes_no_logit(model_folders: dict[str, Path], processor: Any) -> None:
    model = rope_gain.load_pretrained(model_folders["base"])
    batch = Collator(processor, model.base_model.get_rope_index)([sample(5), sample(4)])
    logits = [
        SignalModel(model, freeze_vision=True, feature_cache_bytes=capacity).signals(batch, []).logits_NV
        for capacity in (0, 1000, 2**20)
    ]
    torch.testing.assert_close(logits[0], logits[2])
    torch.testing.assert_close(logits[1], logits[2])


def test_the_teacher_has_no_gradients(model_folders: dict[str, Path], processor: Any) -> None:
    teacher = Teacher(rope_gain.load_pretrained(model_folders["teacher"]), feature_cache_bytes=2**20)
    batch = Collator(processor, teacher.model.base_model.get_rope_index)([sample(2)])
    signals = teacher.signals(batch, [2])
    assert not signals.logits_NV.requires_grad
    assert not signals.layers[2].q_BHTD.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_the_shape_of_the_decoder(model_folders: dict[str, Path]) -> None:
    shape = SignalModel(
        rope_gain.load_pretrained(model_folders["teacher"]), freeze_vision=True, feature_cache_bytes=0
    ).shape
    assert (shape.num_layers, shape.num_heads, shape.num_key_value_heads, shape.head_size) == (3, 4, 2, 32)
