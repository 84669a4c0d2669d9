"""What was fitted is known again in the same conversation, at the same place, for the same image."""

from server.media.images import ImageSize
from server.prompt.remembered_fits import RememberedFits

SMALL = ImageSize(width=32, height=32)


def test_a_size_belongs_to_a_conversation_a_place_and_an_image() -> None:
    fits = RememberedFits(8)
    fits.remember(b"one", ["a", "b", "b"], {1: SMALL})

    assert fits.recall(b"one", ["a", "b", "b"]) == {1: SMALL}
    assert fits.recall(b"one", ["a"]) == {}
    assert fits.recall(b"one", ["a", "c"]) == {}
    assert fits.recall(b"two", ["a", "b"]) == {}


def test_only_so_much_is_remembered() -> None:
    fits = RememberedFits(1)
    fits.remember(b"one", ["a"], {0: SMALL})
    fits.remember(b"two", ["a"], {0: SMALL})

    assert fits.recall(b"one", ["a"]) == {}
    assert fits.recall(b"two", ["a"]) == {0: SMALL}
