import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.data.bad_samples import Tally
from distill.data.sample import Sample, Source
from distill.loading import make_source
from distill.recipe import DataConfig


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """An encoded image whose pixels tell its number."""

    def encode(number: int = 0, size: tuple[int, int] = (4, 3), format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, (number, 0, 255 - number)).save(buffer, format)
        return buffer.getvalue()

    return encode


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, list[Any]], Path]:
    """A file in which each value is a line; text goes in as it is."""

    def write(name: str, values: list[Any]) -> Path:
        lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


@pytest.fixture
def open_source() -> Callable[..., Source]:
    """The source of a data block, with words for tokens and room for three samples a step."""

    def make(*, seed: int = 0, window_tokens: int | None = None, tally: Tally | None = None, **settings: Any) -> Source:
        config = DataConfig(**{"tokens_per_step": 1000, "max_samples_per_step": 3} | settings)
        return make_source(config, seed=seed, count_tokens=count_words, window_tokens=window_tokens, tally=tally)

    return make


def count_words(sample: Sample) -> int:
    """Words of all texts, and four for each image."""
    contents = [message["content"] for message in sample.messages]
    texts = [
        part.get("text", "")
        for content in contents
        for part in ([{"text": content}] if isinstance(content, str) else content)
    ]
    return sum(len(text.split()) for text in texts) + 4 * len(sample.images)


@pytest.fixture
def numbers() -> Callable[[Sample], list[int]]:
    """The numbers of a sample's pictures."""
    return lambda sample: [image.getpixel((0, 0))[0] for image in sample.images]
