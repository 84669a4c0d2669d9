"""One question about a haystack of images, whatever task it is from."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from distill.data.images import ImageReader

MAX_NEW_TOKENS = 16
"""Room for any legal answer and a few words too many, which then show as non-compliant."""

_SENT_AS_THEY_ARE = ("jpeg", "png", "webp")


class Picture(Protocol):
    """An image that is made or read when it is needed, and not kept."""

    def load(self) -> Image.Image:
        """The pixels, RGB."""
        ...

    def encode(self) -> tuple[bytes, str]:
        """The same image as a file without loss: its content, and its format in lower case, such as "png"."""
        ...


@dataclass(frozen=True)
class DrawnPicture:
    """An image that is at hand."""

    image: Image.Image

    def load(self) -> Image.Image:
        """The image itself."""
        return self.image

    def encode(self) -> tuple[bytes, str]:
        """A PNG."""
        buffer = io.BytesIO()
        # A served miniature image is read once: time spent on a smaller file is lost.
        self.image.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue(), "png"


@dataclass(frozen=True)
class FilePicture:
    """An image in a file, read under the same limits as a training image."""

    path: Path
    reader: ImageReader

    def load(self) -> Image.Image:
        """Upright by its EXIF data, RGB; ValueError names a file that is missing or no image."""
        return self.reader.load(str(self.path))

    def encode(self) -> tuple[bytes, str]:
        """The file as it is, or a PNG of what a server may not read; ValueError as `load`."""
        self.reader.measure(str(self.path))
        content = self.path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            file_format = (image.format or "").lower()
        return (content, file_format) if file_format in _SENT_AS_THEY_ARE else DrawnPicture(self.load()).encode()


@dataclass(frozen=True, kw_only=True)
class Item:
    """A prompt, its only right answer, and where in the prompt that is told."""

    size: int
    """What the item counts under; a number of images, except where its task says otherwise."""

    index: int
    """Among the items of this size, from 0."""

    parts: tuple[str | Picture, ...]
    """The user's message: texts and images in their order."""

    answer: str
    legal_answers: tuple[str, ...] | None
    """Every answer that complies; None for an open question."""

    needle_index: int
    """The image that the question is about, from 0; the first of several."""

    depth: float | None = None
    """Where the needle is, 0 (first) to 1 (last), if it is not one image: the mean of several, or a place in a text."""

    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def num_images(self) -> int:
        """Images in the prompt."""
        return sum(not isinstance(part, str) for part in self.parts)

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All images, loaded."""
        return tuple(part.load() for part in self.parts if not isinstance(part, str))

    @property
    def question(self) -> str:
        """All text of the prompt."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def messages(self) -> list[dict[str, Any]]:
        """One user message in the form of `apply_chat_template`, its images loaded."""
        return self._messages(lambda picture: {"type": "image", "image": picture.load()})

    def openai_messages(self) -> list[dict[str, Any]]:
        """The same in the OpenAI form, its images as data URLs."""
        return self._messages(lambda picture: {"type": "image_url", "image_url": {"url": _data_url(picture)}})

    def _messages(self, show: Callable[[Picture], dict[str, Any]]) -> list[dict[str, Any]]:
        content = [{"type": "text", "text": part} if isinstance(part, str) else show(part) for part in self.parts]
        return [{"role": "user", "content": content}]


def _data_url(picture: Picture) -> str:
    content, file_format = picture.encode()
    return f"data:image/{file_format};base64,{base64.b64encode(content).decode('ascii')}"
