"""For a gateway that takes images from requests' bodies alone."""

from collections.abc import Sequence
from typing import Any

from server.media.source import Content, ImageError, RemoteUrl, UploadedFile


class NoLoader:
    """Loads nothing."""

    async def load(
        self, sources: Sequence[RemoteUrl | UploadedFile], *_: Any, **__: Any
    ) -> Sequence[Content | ImageError]:
        """See `Loader.load`."""
        return [ImageError("links are not fetched and files not kept here; send a data: URL") for _ in sources]
