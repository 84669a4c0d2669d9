"""What the gateway asks of a model family: how many tokens an image becomes, and how to make it fewer."""

from typing import Protocol

from server.media.images import ImageSize


class ImageRule(Protocol):
    """One checkpoint's images; sizes are those of the image as it is seen, after its EXIF orientation."""

    @property
    def placeholder(self) -> str:
        """The token that stands once for an image in the chat template's text."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token that the engine puts in the placeholder's place, itself included."""

    def count(self, size: ImageSize) -> int:
        """Tokens that the engine puts in the placeholder's place.

        Raises:
            ValueError: a shape that the model does not accept.
        """

    def shrink(self, size: ImageSize, scale: float) -> ImageSize:
        """The size of the same image at `scale` (0 to 1) times the sides with which the model sees it.

        Never larger than `size`, and never so small that the model would enlarge it; at 0 as small as sensible.
        """


def scaled(size: ImageSize, scale: float) -> ImageSize:
    """`size` with both sides times `scale`, at least a pixel each."""
    return ImageSize(width=max(1, round(size.width * scale)), height=max(1, round(size.height * scale)))
