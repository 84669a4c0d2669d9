import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.miniature.items import KINDS, legal_answers, make_haystack, make_item


@given(seed=st.integers(0, 2**40), num_images=st.integers(1, 60), kind=st.sampled_from(KINDS))
def test_only_the_needle_holds_the_anchor_and_the_answer_is_true(seed, num_images, kind):
    haystack = make_haystack(random.Random(seed), num_images, kind)
    with_anchor = [index for index, names in enumerate(haystack.contents) if haystack.anchor in names]
    assert with_anchor == [haystack.needle_index]
    (other,) = set(haystack.contents[haystack.needle_index]) - {haystack.anchor}
    if kind == "open":
        assert haystack.answer == other
    else:
        assert haystack.answer == ("yes" if haystack.asked == other else "no")
    assert haystack.answer in legal_answers(kind)


def test_yes_and_no_are_balanced_and_needles_lie_everywhere():
    haystacks = [make_haystack(random.Random(seed), 10, "yes_no") for seed in range(2000)]
    yes = sum(haystack.answer == "yes" for haystack in haystacks)
    assert 900 < yes < 1100
    depths = [sum(haystack.needle_index == depth for haystack in haystacks) for depth in range(10)]
    assert min(depths) > 140


def test_an_item_is_made_again_from_its_arguments_and_from_nothing_else():
    def content(seed, num_images, kind):
        item = make_item(seed, num_images, kind)
        return [image.tobytes() for image in item.images], item.question, item.answer

    assert content(5, 3, "open") == content(5, 3, "open")
    assert content(5, 3, "open") != content(6, 3, "open")
    assert content(5, 3, "open") != content(5, 3, "yes_no")


def test_messages_put_the_images_first():
    item = make_item(1, 4, "open")
    (message,) = item.messages()
    assert [part["type"] for part in message["content"]] == ["image"] * 4 + ["text"]
    assert message["content"][-1]["text"] == item.question


@pytest.mark.parametrize(
    ("num_images", "kind", "message"),
    [(0, "open", "num_images: 0"), (1, "maybe", "kind: 'maybe', expected one of open")],
)
def test_wrong_arguments_are_named(num_images, kind, message):
    with pytest.raises(ValueError, match=message):
        make_item(1, num_images, kind)
