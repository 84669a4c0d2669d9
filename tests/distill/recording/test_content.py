import dataclasses

import pytest
import torch

from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.recording.content import sample_contents
from tests.distill.recording.samples import TEXT, make_sample


def test_a_sample_has_the_same_content_in_every_batch(collate: Collator, batch: Batch) -> None:
    alone = [sample_contents(collate([sample]))[0] for sample in (make_sample(3), TEXT, make_sample(1))]
    assert sample_contents(batch) == alone
    assert len({content.key for content in alone}) == 3


def test_a_name_is_no_content(collate: Collator) -> None:
    renamed = dataclasses.replace(TEXT, name="elsewhere")
    assert sample_contents(collate([TEXT])) == sample_contents(collate([renamed]))


def test_another_image_or_answer_is_another_content(collate: Collator) -> None:
    sample = make_sample(2)
    other_answer = dataclasses.replace(sample, answer=f"no {sample.answer}")
    mirrored = make_sample(2)
    parts = mirrored.messages[0]["content"]
    parts[0]["image"], parts[1]["image"] = parts[1]["image"], parts[0]["image"]
    expected, answer, images = (sample_contents(collate([each]))[0] for each in (sample, other_answer, mirrored))
    assert expected.differing(images) == ["images"]
    assert "tokens" in expected.differing(answer)
    assert len({expected.key, answer.key, images.key}) == 3


def test_an_image_that_no_token_stands_for_is_refused(batch: Batch) -> None:
    doubled = dataclasses.replace(batch, images=batch.images * 2)
    with pytest.raises(ValueError, match="3 images: 4 images by the tokens, expected 8"):
        sample_contents(doubled)


@pytest.mark.parametrize(
    ("name", "part"), [("input_ids_BT", "tokens"), ("answer_BT", "tokens"), ("position_ids_3BT", "positions")]
)
def test_every_tensor_that_a_teacher_sees_counts(batch: Batch, name: str, part: str) -> None:
    values = getattr(batch, name).clone()
    values[..., 1, 2] = ~values[..., 1, 2] if values.dtype == torch.bool else values[..., 1, 2] + 1
    changed = sample_contents(dataclasses.replace(batch, **{name: values}))
    assert [old.differing(new) for old, new in zip(sample_contents(batch), changed, strict=True)] == [[], [part], []]
