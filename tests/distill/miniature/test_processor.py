import pytest

from distill.miniature.items import make_item
from distill.miniature.objects import OBJECTS
from distill.miniature.processor import SPECIAL_TOKENS, make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.mark.parametrize("text", ["blue square", "Grüße, 世界!\n\ttabs", "the red circle", ""])
def test_any_text_survives_the_tokenizer(processor, text):
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_single(processor):
    for token in SPECIAL_TOKENS:
        assert len(processor.tokenizer(token)["input_ids"]) == 1


@pytest.mark.parametrize("text", ["{}", "the {}, what"])
def test_every_object_is_one_token_wherever_it_stands(processor, text):
    around = len(processor.tokenizer(text.format(""))["input_ids"])
    assert {len(processor.tokenizer(text.format(name))["input_ids"]) - around for name in OBJECTS} == {1}


@pytest.mark.parametrize("num_images", [1, 7])
def test_an_image_is_four_merged_tokens_and_two_marks(processor, num_images):
    inputs = processor.apply_chat_template(
        make_item(1, num_images, "open").messages(),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]] * num_images
    image_tokens = (inputs["input_ids"] == processor.image_token_id).sum().item()
    assert image_tokens == 4 * num_images
    assert inputs["pixel_values"].shape == (16 * num_images, 3 * 2 * 8 * 8)


def test_two_processors_agree(processor):
    other = make_processor()
    assert other.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
