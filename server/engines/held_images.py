"""Images that an engine holds already are not sent again; where that was a mistake, the client does not notice."""

from collections.abc import Iterable

from server.errors import GatewayError, Reason
from server.media.bounded import Bounded

# vLLM's refusal of a name without data that is not, or no longer, in its processor's cache.
MISS = "Cache miss for image"


class HeldImages:
    """The names of the images that one engine was sent and answered for, the most recently used ones."""

    def __init__(self, max_images: int) -> None:
        self._names: Bounded[str, bool] = Bounded(max_images)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._names.get(name) is not None

    def add(self, names: Iterable[str]) -> None:
        """The engine has answered a request with these."""
        for name in names:
            self._names.put(name, True)

    def drop(self, names: Iterable[str]) -> None:
        """The engine does not have these, or it is not sure."""
        for name in names:
            self._names.drop(name)


def may_miss_images(error: GatewayError) -> bool:
    """Whether an engine's refusal can come of images that were sent without their data.

    A server error is one that vLLM gives where its two processes disagree about what they hold
    (`vllm.multimodal.cache.MultiModalCacheMissError`).
    """
    if error.reason == Reason.ENGINE_REFUSED:
        return error.status == 400 and error.message.startswith(MISS)
    return error.reason == Reason.ENGINE_FAILED and error.status == 500
