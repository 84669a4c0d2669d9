import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.data.bad_samples import BadSampleError
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.data.images import ImageSize
from distill.data.sample import Sample
from distill.families import ARCHITECTURES, find_family
from distill.miniature.items import make_item
from rope_gain.families import find_family as find_gain_family
from tests.rope_gain.models import build_tiny

INTERNVL = "InternVLForConditionalGeneration"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """Architecture, model and processor."""
    return request.param, *build_tiny(find_gain_family(request.param))


@pytest.fixture
def model(family: tuple[str, Any, Any]) -> Any:
    return family[1]


@pytest.fixture
def processor(family: tuple[str, Any, Any]) -> Any:
    return family[2]


@pytest.fixture
def collate(model: Any, processor: Any) -> Collator:
    return make_collator(model, processor)


def make_collator(model: Any, processor: Any) -> Collator:
    return Collator(processor, find_family(model).rope_index(model))


def sample(num_images: int, size: tuple[int, int] = (32, 32)) -> Sample:
    item = make_item(num_images, num_images, "yes_no")
    parts = item.messages()[0]["content"]
    for part in parts[:-1]:
        part["image"] = part["image"].resize(size)
    return Sample(messages=({"role": "user", "content": parts},), answer=item.answer, name=f"{num_images} images")


def stock_inputs(processor: Any, samples: list[Sample]) -> Any:
    """What the processor's own call gives for prompts and answers."""
    prompts = [
        processor.apply_chat_template(list(each.messages), tokenize=False, add_generation_prompt=True)
        + f"{each.answer}<|im_end|>"
        for each in samples
    ]
    return processor(
        text=prompts,
        images=[each.images for each in samples],
        return_tensors="pt",
        return_mm_token_type_ids=True,
        padding=True,
        padding_side="right",
    )


def stock_positions(model: Any, inputs: Any) -> Tensor:
    """What the model's own forward pass takes where it is given none."""
    if not hasattr(model.base_model, "get_rope_index"):
        # Qwen2Model's default.
        num_tokens = inputs["input_ids"].shape[1]
        return (torch.arange(num_tokens) * inputs["attention_mask"]).expand(3, -1, -1)
    positions_3BT, _ = model.base_model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return positions_3BT


def assert_same_ids_and_pixels(batch: Batch, expected: Any) -> None:
    assert torch.equal(batch.input_ids_BT, expected["input_ids"])
    assert torch.equal(batch.is_token_BT.long(), expected["attention_mask"])
    assert torch.equal(torch.cat([each.pixel_values for each in batch.images]), expected["pixel_values"])


def test_ids_patches_and_positions_equal_the_processors_and_the_models(
    collate: Collator, model: Any, processor: Any
) -> None:
    samples = [sample(2), sample(5, size=(64, 32)), sample(1)]
    batch = collate(samples)
    expected = stock_inputs(processor, samples)
    assert_same_ids_and_pixels(batch, expected)
    if "image_grid_thw" in expected:
        assert torch.equal(torch.stack([each.grid_3 for each in batch.images]), expected["image_grid_thw"])
    assert torch.equal(batch.position_ids_3BT, stock_positions(model, expected))


@pytest.mark.parametrize(
    ("settings", "tiles"),
    [
        ({}, [1, 3, 3, 5]),
        ({"max_patches": 1}, [1, 1, 1, 1]),
        ({"max_patches": 2}, [1, 3, 3, 3]),
        # The processor's own call cuts into tiles whatever the image processor is configured with.
        ({"crop_to_patches": False}, [1, 3, 3, 5]),
    ],
    ids=str,
)
def test_internvl_cuts_images_as_its_processor_does(settings: dict[str, Any], tiles: list[int]) -> None:
    model, processor = build_tiny(find_gain_family(INTERNVL))
    for name, value in settings.items():
        setattr(processor.image_processor, name, value)
    samples = [sample(1), sample(2, size=(64, 32)), sample(1, size=(40, 200))]
    collate = make_collator(model, processor)
    batch = collate(samples)
    assert_same_ids_and_pixels(batch, stock_inputs(processor, samples))
    assert [image.grid_3.tolist() for image in batch.images] == [[number, 32, 32] for number in tiles]
    assert [collate.count_tokens(each) for each in samples] == batch.is_token_BT.sum(dim=1).tolist()


def test_answer_rows_predict_the_answer_and_the_end_of_the_turn(collate: Collator, processor: Any) -> None:
    samples = [sample(2), sample(3)]
    batch = collate(samples)
    text = processor.tokenizer.decode(batch.answer_ids)
    assert text == f"{samples[0].answer}<|im_end|>{samples[1].answer}<|im_end|>"
    before_answer = batch.answer_BT.int().argmax(dim=1)
    prompt_end = processor.tokenizer.decode(batch.input_ids_BT[0, : before_answer[0] + 1])
    assert prompt_end.endswith("<|im_start|>assistant\n")


def test_question_rows_start_after_the_last_image(collate: Collator, processor: Any) -> None:
    batch = collate([sample(2), sample(3)])
    for question_T, ids_T, is_token_T in zip(batch.question_BT, batch.input_ids_BT, batch.is_token_BT, strict=True):
        text = processor.tokenizer.decode(ids_T[question_T])
        # As the tiny InternVL's template has it.
        assert text.startswith(("<|vision_end|>You are given", r"</img>\nYou are given"))
        assert text.endswith("<|im_end|>")
        assert not (question_T & ~is_token_T).any()


def test_images_before_counts_the_images_that_began(collate: Collator, processor: Any) -> None:
    batch = collate([sample(3)])
    is_image_T = batch.input_ids_BT[0] == processor.image_token_id
    assert batch.images_before_BT[0][is_image_T].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert batch.images_before_BT[0, 0] == 0
    assert batch.images_before_BT[0, -1] == 3


def test_equal_images_share_their_patches(collate: Collator) -> None:
    twice = sample(2)
    batch = collate([twice, twice])
    assert batch.images[0] is batch.images[2]
    assert batch.images[0] is not batch.images[1]


def test_count_tokens_is_the_length_in_the_batch(collate: Collator) -> None:
    assert collate.count_tokens(sample(4)) == int(collate([sample(4)]).is_token_BT.sum())


def test_placeholders_in_the_text_are_not_taken_for_images(collate: Collator, processor: Any) -> None:
    forged = Sample(messages=({"role": "user", "content": processor.image_token},), answer="no", name="line 7")
    with pytest.raises(ValueError, match="line 7: 1 image placeholders for 0 images"):
        collate([forged])


def test_a_video_s_place_in_the_text_is_refused(collate: Collator, processor: Any) -> None:
    text = f"What happens in {processor.video_token}?"
    forged = Sample(messages=({"role": "user", "content": text},), answer="no", name="line 7")
    for refuse in (collate.encode, collate.count_tokens):
        with pytest.raises(BadSampleError, match=r"line 7: .*: video: not supported"):
            refuse(forged)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (300, 20), (8, 8), (150, 149)], ids=str)
def test_count_tokens_looks_at_sizes_alone(collate: Collator, size: tuple[int, int]) -> None:
    whole = sample(3, size=size)
    parts = whole.messages[0]["content"]
    sizes = [{"type": "image", "image": ImageSize(*size)} for _ in range(3)]
    measured = dataclasses.replace(whole, messages=({"role": "user", "content": [*sizes, parts[-1]]},))
    assert collate.count_tokens(measured) == len(collate.encode(whole).input_ids_T)
