"""What a data source gives: samples, grouped into steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation up to the assistant's turn, and that turn's text."""

    messages: tuple[dict[str, Any], ...]
    """In the form of `apply_chat_template`; image parts are {"type": "image", "image": PIL image}."""
    answer: str
    name: str
    """Where it came from, for messages: a file and line, or a seed."""

    @property
    def images(self) -> list[Image.Image]:
        """The images of all messages, in order; of a sample that is only measured, their sizes."""
        contents = [message["content"] for message in self.messages if not isinstance(message["content"], str)]
        return [part["image"] for content in contents for part in content if part["type"] == "image"]


CountTokens = Callable[[Sample], int]
"""Tokens of the prompt and the answer; of the images it looks at `width` and `height` alone."""


class Source(Protocol):
    """Samples of each step, a pure function of the step: resuming needs nothing but its number."""

    def samples(self, step: int) -> list[Sample]:
        """The samples of this step, of about equal length and within the budget of tokens."""
        ...
