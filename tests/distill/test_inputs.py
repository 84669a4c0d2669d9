import dataclasses
import re

import pytest

from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.data.sample import Sample
from distill.families import find_family
from distill.inputs import check_same_inputs, check_same_vocabulary
from distill.miniature.items import make_item
from distill.miniature.processor import make_tokenizer
from rope_gain.families import find_family as find_gain_family
from tests.rope_gain.models import build_tiny


@pytest.fixture(
    scope="module",
    params=["Qwen2_5_VLForConditionalGeneration", "InternVLForConditionalGeneration"],
    ids=["qwen", "internvl"],
)
def batch(request: pytest.FixtureRequest) -> Batch:
    model, processor = build_tiny(find_gain_family(request.param))
    items = [make_item(seed, seed, "open") for seed in (1, 2)]
    samples = [Sample(messages=tuple(i.messages()), answer=i.answer, name=f"item {i.answer}") for i in items]
    return Collator(processor, find_family(model).rope_index(model))(samples)


def test_equal_inputs_pass(batch: Batch) -> None:
    check_same_inputs(batch, dataclasses.replace(batch))


def test_lost_images_are_noticed(batch: Batch) -> None:
    with pytest.raises(ValueError, match=f"{batch.names[1]}: 2 images for the student, 1 for the teacher"):
        check_same_inputs(batch, dataclasses.replace(batch, images=batch.images[:2]))


def test_another_grid_is_noticed(batch: Batch) -> None:
    larger = dataclasses.replace(batch.images[1], grid_3=batch.images[1].grid_3 * 2)
    images = (batch.images[0], larger, batch.images[2])
    grids = [re.escape(str(image.grid_3.tolist())) for image in (batch.images[1], larger)]
    with pytest.raises(ValueError, match=f"{batch.names[1]}: image 0 has the grid {grids[0]} .* and {grids[1]}"):
        check_same_inputs(batch, dataclasses.replace(batch, images=images))


def test_other_tokens_are_noticed(batch: Batch) -> None:
    changed = batch.input_ids_BT.clone()
    changed[1, 0] += 1
    with pytest.raises(ValueError, match=f"{batch.names[1]}: token 0 is"):
        check_same_inputs(batch, dataclasses.replace(batch, input_ids_BT=changed))


def test_lost_image_tokens_are_noticed(batch: Batch) -> None:
    changed = batch.input_ids_BT.clone()
    changed[1][changed[1] == batch.image_token_id] = 7
    with pytest.raises(ValueError, match=f"{batch.names[1]}: 8 image tokens for the student, 0 for the teacher"):
        check_same_inputs(batch, dataclasses.replace(batch, input_ids_BT=changed))


def test_other_positions_are_noticed(batch: Batch) -> None:
    changed = batch.position_ids_3BT.clone()
    changed[2, 1, 5] += 1
    with pytest.raises(ValueError, match=f"{batch.names[1]}: the positions differ"):
        check_same_inputs(batch, dataclasses.replace(batch, position_ids_3BT=changed))


def test_tokenizers_that_differ_are_noticed() -> None:
    ours, theirs = make_tokenizer(), make_tokenizer()
    check_same_vocabulary(ours, theirs)
    theirs.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="1 tokens differ; '<new>' is unknown for the student and"):
        check_same_vocabulary(ours, theirs)
