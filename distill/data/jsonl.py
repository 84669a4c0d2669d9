"""Samples from a file of OpenAI messages, one a line."""

import base64
import binascii
import io
import itertools
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from distill.data.sample import CountTokens, Sample
from distill.recipe import DataConfig, JsonlData


@dataclass(frozen=True, kw_only=True)
class _Line:
    number: int
    offset_bytes: int
    num_tokens: int


class JsonlSource:
    """Every epoch meets every line once, in steps of about equally long samples, shuffled by seed and epoch.

    Of the file only offsets and lengths stay in memory.
    """

    def __init__(self, config: DataConfig, jsonl: JsonlData, *, seed: int, count_tokens: CountTokens) -> None:
        """Reads the file once, to check every line and to learn its length.

        Raises:
            ValueError: a bad line; the message starts with the file and the line.
        """
        self._path = Path(jsonl.path)
        self._image_folder = Path(jsonl.image_folder) if jsonl.image_folder else self._path.parent
        self._seed = seed
        self._lines = self._scan(count_tokens)
        if not self._lines:
            raise ValueError(f"data.jsonl.path: {jsonl.path}: no lines, expected at least one sample")
        self._step_sizes = _step_sizes(sorted(line.num_tokens for line in self._lines), config)
        self._plan = lru_cache(maxsize=1)(self._make_plan)

    def samples(self, step: int) -> list[Sample]:
        """The samples of this step; the same arguments always give the same samples."""
        epoch, index = divmod(step, len(self._step_sizes))
        return [self._read(line) for line in self._plan(epoch)[index]]

    def _make_plan(self, epoch: int) -> list[list[_Line]]:
        rng = random.Random(f"jsonl/{self._seed}/{epoch}")
        lines = rng.sample(self._lines, len(self._lines))
        # Stable: lines of equal length stay in random order, so that other samples meet in each epoch.
        lines.sort(key=lambda line: line.num_tokens)
        remaining = iter(lines)
        steps = [list(itertools.islice(remaining, size)) for size in self._step_sizes]
        rng.shuffle(steps)
        return steps

    def _scan(self, count_tokens: CountTokens) -> list[_Line]:
        lines: list[_Line] = []
        offset_bytes = 0
        with self._path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    num_tokens = count_tokens(self._parse(text, number))
                    lines.append(_Line(number=number, offset_bytes=offset_bytes, num_tokens=num_tokens))
                offset_bytes += len(text)
        return lines

    def _read(self, line: _Line) -> Sample:
        with self._path.open("rb") as file:
            file.seek(line.offset_bytes)
            return self._parse(file.readline(), line.number)

    def _parse(self, text: bytes, number: int) -> Sample:
        name = f"{self._path}:{number}"
        try:
            *messages, last = json.loads(text)["messages"]
            if last["role"] != "assistant" or not isinstance(last["content"], str):
                raise ValueError("expected the last message to be the assistant's, with text as its content")
            parsed = tuple(self._message(message) for message in messages)
        except (KeyError, TypeError) as error:
            raise ValueError(f'{name}: expected {{"messages": [...]}} in the OpenAI form ({error!r})') from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error
        return Sample(messages=parsed, answer=last["content"], name=name)

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message["content"]
        if not isinstance(content, str):
            content = [self._part(part) for part in content]
        return {"role": message["role"], "content": content}

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return {"type": "text", "text": part["text"]}
        if part["type"] != "image_url":
            raise ValueError(f"type: {part['type']!r}, expected 'text' or 'image_url'")
        return {"type": "image", "image": _open_image(part["image_url"]["url"], self._image_folder)}


def _step_sizes(sorted_lengths: list[int], config: DataConfig) -> list[int]:
    """Numbers of samples per step, shortest first; the same in every epoch, since the lengths are."""
    sizes: list[int] = []
    count = 0
    for length in sorted_lengths:
        is_full = count == config.max_samples_per_step or (count + 1) * length > config.tokens_per_step
        if count and is_full:
            sizes.append(count)
            count = 0
        count += 1
    return [*sizes, count]


def _open_image(url: str, folder: Path) -> Image.Image:
    """A data URL or a path; other URLs are refused, since training data must not depend on the network."""
    try:
        if url.startswith("data:"):
            data = base64.b64decode(url.partition(";base64,")[2], validate=True)
            return Image.open(io.BytesIO(data)).convert("RGB")
        if "://" in url:
            raise ValueError(f"image_url: {url!r}, expected a path or a data URL")
        return Image.open(folder / url).convert("RGB")
    except (binascii.Error, UnidentifiedImageError) as error:
        raise ValueError(f"image_url: {url[:60]!r}, expected an image ({error})") from error
