"""What images were scaled down to in a conversation's earlier turns, so that its next turn shows them so again."""

from collections.abc import Mapping, Sequence

from server.media.bounded import Bounded
from server.media.images import ImageSize


class RememberedFits:
    """Sizes by conversation, place and image; a client sends the originals again at every turn.

    An engine that has cached the smaller images finds them unchanged, and what fitted in one turn does not grow back
    in the next. Kept in this process alone: another gateway leaves earlier images as they are sent.
    """

    def __init__(self, max_entries: int) -> None:
        self._sizes: Bounded[tuple[bytes, int, str], ImageSize] = Bounded(max_entries)

    def recall(self, conversation: bytes, names: Sequence[str]) -> dict[int, ImageSize]:
        """The sizes of those of a conversation's images that were scaled down before, by their place in the prompt.

        Args:
            conversation: what all its turns have in common (`affinity_key`).
            names: of the images of its earlier turns, as they were sent.
        """
        found = {place: self._sizes.get((conversation, place, name)) for place, name in enumerate(names)}
        return {place: size for place, size in found.items() if size is not None}

    def remember(self, conversation: bytes, names: Sequence[str], fitted: Mapping[int, ImageSize]) -> None:
        """Notes what `fitted` makes of the images `names`, all of the prompt's."""
        for place, size in fitted.items():
            self._sizes.put((conversation, place, names[place]), size)
