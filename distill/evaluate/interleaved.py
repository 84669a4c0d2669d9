"""What tasks share whose prompts are long documents: sizes counted in tokens, and images in the midst of text."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.data.images import ImageReader
from distill.data.json_file import JsonFile
from distill.data.records import Place
from distill.evaluate.item import FilePicture, Picture
from distill.recipe import ImagesConfig

PLACEHOLDER = "<image>"


class Entry(NamedTuple):
    """One question of a file: what must be known of it before it is asked."""

    file: JsonFile
    place: Place
    num_images: int


class InterleavedTask:
    """What tasks of long documents share: questions by size, in an order that follows from the seed, and images."""

    def __init__(self, entries: Iterable[tuple[int, Entry]], images: Path, seed: int) -> None:
        """Takes all (size, entry) and shuffles those of each size.

        Args:
            images: the folder that the paths of images start from.
        """
        self.seed = seed
        self._images, self._reader = images, ImageReader(ImagesConfig())
        by_size: defaultdict[int, list[Entry]] = defaultdict(list)
        for size, entry in entries:
            by_size[size].append(entry)
        self._by_size = {
            size: random.Random(f"entries/{seed}/{size}").sample(each, len(each)) for size, each in by_size.items()
        }

    @property
    def default_sizes(self) -> tuple[int, ...]:
        """All sizes met, growing."""
        return tuple(sorted(self._by_size))

    def most_images(self, sizes: Sequence[int]) -> int:
        """See `Task`."""
        return max(entry.num_images for size in sizes for entry in self._by_size[size])

    def check(self, sizes: Sequence[int], num_items: int) -> None:
        """ValueError names a size that is not there, has too few entries, or no images of its own number."""
        seen: dict[int, int] = {}
        for size in sizes:
            if size not in self._by_size:
                raise ValueError(
                    f"--sizes: {size}, expected sizes of these files: {' '.join(map(str, self.default_sizes))}"
                )
            entries = self._by_size[size]
            if len(entries) < num_items:
                raise ValueError(f"--items: {num_items}, but there are {len(entries)} of size {size}")
            images = round(sum(entry.num_images for entry in entries[:num_items]) / num_items)
            if images < 1 or images in seen:
                others = f"as have those of {seen[images]}" if images in seen else "expected at least 1"
                raise ValueError(f"--sizes: prompts of {size} have {images} images on average, {others}; leave one out")
            seen[images] = size

    def _entry(self, size: int, index: int) -> Entry:
        return self._by_size[size][index]

    def _interleave(self, text: str, paths: Sequence[str]) -> tuple[str | Picture, ...]:
        """The text with each placeholder replaced by its image; ValueError if their numbers differ."""
        first, *others = text.split(PLACEHOLDER)
        if len(others) != len(paths):
            raise ValueError(f"{len(others)} times {PLACEHOLDER} for {len(paths)} images")
        parts: list[str | Picture] = [first]
        for path, part in zip(paths, others, strict=True):
            parts += [FilePicture(self._images / path, self._reader), part]
        return tuple(part for part in parts if part != "")
