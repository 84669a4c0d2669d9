"""Visual Haystacks (arXiv 2407.13766) as a task: the published haystacks, and others of any size built from them.

What the official evaluation does and what is done here:

- The prompt is the official one. The official single-needle run asks each question with the needle at about ten
  places among distractors in the file's order, the multi-needle run shuffles without a seed; here each question is
  asked once, its images in an order that follows from the seed and the question.
- An official answer is right if the true word is among its words, so "yes and no" always is. It is reproduced as the
  official score; beside it an answer is right only if it is the true word, and its form is counted apart.

A built haystack relies on two properties of the files: the negatives of a question do not show its anchor, and so do
not those of any other question about the same anchor. Both are how the benchmark was made; the files cannot prove it.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from distill.data.images import ImageReader
from distill.data.json_file import JsonFile
from distill.data.records import Place
from distill.data.visual_haystacks import OPENING
from distill.evaluate.item import FilePicture, Item
from distill.evaluate.scoring import Score, haystack_words, score
from distill.recipe import ImagesConfig

_ORACLE = "oracle"
_FILE_NAME = re.compile(r"visual_haystack_(oracle|\d+)\.json")
_QUESTION = re.compile(r"^For (the image|all images) with (?:an? |the )?(?P<anchor>[^,]+), ")


class Entry(NamedTuple):
    """One question of a file: what must be known of it before it is asked."""

    place: Place
    num_needles: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question as the file gives it."""

    text: str
    answer: str
    needles: tuple[str, ...]
    distractors: tuple[str, ...]

    @property
    def anchor(self) -> str | None:
        """The object that tells the needles from the distractors; None if the question has another form."""
        match = _QUESTION.match(self.text)
        return match["anchor"].strip() if match else None


class HaystackFile(JsonFile):
    """One visual_haystack_*.json: a list of {"conversations", "pos_image", "neg_image"}."""

    def __init__(self, path: Path) -> None:
        """Reads the file once, keeping of each question only where it is; ValueError names what is malformed."""
        super().__init__(path)
        self.entries: list[Entry] = []
        for place in self.scan():
            question = self.question(place)
            num_needles = len(question.needles)
            self.entries.append(Entry(place, num_needles, num_needles + len(question.distractors)))
        if not self.entries:
            raise ValueError(f"{path}: holds no question")
        self.question_at = lru_cache(maxsize=1)(self.question)

    def question(self, place: Place) -> Question:
        """The question at a place; ValueError with file and line if it is none."""
        try:
            record = self.record(place)
            text, answer = (turn["value"] for turn in record["conversations"])
            question = Question(
                text=text, answer=answer, needles=tuple(record["pos_image"]), distractors=tuple(record["neg_image"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{self.name(place)}: {error!r}, expected "conversations", "pos_image", "neg_image"'
            ) from error
        if answer not in ("yes", "no"):
            raise ValueError(f"{self.name(place)}: answer: {answer!r}, expected 'yes' or 'no'")
        if not question.needles:
            raise ValueError(f"{self.name(place)}: pos_image: empty, expected at least one image")
        if both := set(question.needles).intersection(question.distractors):
            raise ValueError(f"{self.name(place)}: {both.pop()}: in pos_image and in neg_image, expected one of them")
        return question


class VisualHaystacksTask:
    """Visual Haystacks from a file, or from the folder of the published ones."""

    official_scorer = "Visual Haystacks: the true word is among the answer's words"
    size_unit = "image"

    def __init__(self, path: Path, coco: Path, seed: int) -> None:
        """Looks at the names of the files, and reads one to know how many needles there are.

        Args:
            path: a visual_haystack_*.json of any name, or a folder of files of the published names.
            coco: the folder that holds val2017 and test2017.

        Raises:
            ValueError: no such files, or a file that is malformed.
        """
        if not coco.is_dir():
            raise ValueError(f"--coco: {coco}: no such folder, expected COCO's, with val2017 and test2017")
        self.seed = seed
        self._path, self._coco = path, coco
        self._reader = ImageReader(ImagesConfig())
        self._open = lru_cache(maxsize=None)(HaystackFile)
        self._pool = lru_cache(maxsize=None)(self._read_pool)
        self._order = lru_cache(maxsize=None)(self._shuffle_entries)
        self._published = {path.name: path} if path.is_file() else _list_files(path)
        first = self._open(self._choose_file(1))
        kinds = {entry.num_needles > 1 for entry in first.entries}
        if len(kinds) > 1:
            raise ValueError(f"{first.path}: questions with one needle and with several, expected one kind")
        self.kind = "multi_needle" if kinds.pop() else "single_needle"

    @property
    def name(self) -> str:
        """ "visual-haystacks/single_needle" or "visual-haystacks/multi_needle"."""
        return f"visual-haystacks/{self.kind}"

    @property
    def default_sizes(self) -> tuple[int, ...]:
        """The paper's, from the smallest that has room for the needles."""
        return (1, 5, 10, 20, 50, 100, 150) if self.kind == "single_needle" else (5, 10, 20, 50, 100, 150)

    def check(self, sizes: Sequence[int], num_items: int) -> None:
        """See `Task`."""
        for size in sizes:
            if size < 1:
                raise ValueError(f"sizes: {size}, expected at least 1 image")
            num_entries = len(self._order(size))
            if num_entries < num_items:
                file = self._choose_file(size)
                raise ValueError(f"--items: {num_items}, but {file} has {num_entries} questions for size {size}")
            for index in range(num_items):
                self._draw(size, index)

    def most_images(self, sizes: Sequence[int]) -> int:
        """See `Task`."""
        return max(sizes)

    def source(self, size: int) -> str:
        """A published file, or the one that the haystacks are built from."""
        file = self._open(self._choose_file(size))
        is_published = any(entry.num_images == size for entry in file.entries)
        return file.path.name if is_published else f"built from {file.path.name}"

    def item(self, size: int, index: int) -> Item:
        """Item `index` of a size; its images are read when they are needed."""
        question = self._draw(size, index)
        paths = [*question.needles, *question.distractors]
        random.Random(f"order/{self.seed}/{size}/{question.text}/{question.needles}").shuffle(paths)
        places = [paths.index(needle) for needle in question.needles]
        depth = sum(places) / len(places) / max(1, size - 1) if len(places) > 1 else None
        return Item(
            size=size,
            index=index,
            parts=(*(FilePicture(self._find(path), self._reader) for path in paths), OPENING + question.text),
            answer=question.answer,
            legal_answers=("yes", "no"),
            needle_index=min(places),
            depth=depth,
        )

    def score(self, item: Item, answer: str) -> Score:
        """Ours, and the official one beside it."""
        official = float(item.answer in haystack_words(answer))
        return replace(score(answer, item.answer, item.legal_answers), official=official)

    def identity(self) -> dict[str, Any]:
        """See `Task`; the files are told by their sizes and dates."""
        digest = hashlib.sha256()
        for name, path in sorted(self._published.items()):
            digest.update(f"{name}/{path.stat().st_size}/{path.stat().st_mtime_ns}\n".encode())
        return {"task": self.name, "seed": self.seed, "path": str(self._path.resolve()), "files": digest.hexdigest()}

    def _choose_file(self, size: int) -> Path:
        """The file with the haystacks of a size, or the one to build them from: the next larger, or the largest."""
        if self._path.is_file():
            return self._path
        by_size = {int(name[1]): path for name, path in self._by_name() if name[1] != _ORACLE}
        oracle = next((path for name, path in self._by_name() if name[1] == _ORACLE), None)
        if oracle and size not in by_size and (size == 1 or not by_size):
            return oracle
        return by_size[min((each for each in by_size if each >= size), default=max(by_size))]

    def _by_name(self) -> list[tuple[re.Match[str], Path]]:
        return [(match, path) for name, path in self._published.items() if (match := _FILE_NAME.fullmatch(name))]

    def _shuffle_entries(self, size: int) -> list[Entry]:
        """The file's questions that can have this many images, the published haystacks if there are any."""
        file = self._open(self._choose_file(size))
        published = [entry for entry in file.entries if entry.num_images == size]
        entries = published or [entry for entry in file.entries if entry.num_needles <= size]
        return random.Random(f"entries/{self.seed}").sample(entries, len(entries))

    def _draw(self, size: int, index: int) -> Question:
        """A question with exactly as many images as the size says."""
        file = self._open(self._choose_file(size))
        entry = self._order(size)[index]
        question = file.question_at(entry.place)
        missing = size - len(question.needles)
        if missing == len(question.distractors):
            return question
        rng = random.Random(f"distractors/{self.seed}/{size}/{entry.place.number}")
        if missing < len(question.distractors):
            return replace(question, distractors=tuple(rng.sample(question.distractors, missing)))
        if question.anchor is None:
            raise ValueError(
                f"{file.name(entry.place)}: {question.text!r} names no anchor in a known form, so distractors of other "
                f"questions may show it: expected sizes up to {entry.num_images}, or a larger file"
            )
        own = dict.fromkeys([*question.needles, *question.distractors])
        others = [path for path in self._pool(file.path)[question.anchor] if path not in own]
        lacking = missing - len(question.distractors)
        if len(others) < lacking:
            raise ValueError(
                f"{file.name(entry.place)}: size {size}: all questions about a {question.anchor} together give only "
                f"{entry.num_images + len(others)} images; expected a larger file, such as visual_haystack_500.json"
            )
        return replace(question, distractors=(*question.distractors, *rng.sample(others, lacking)))

    def _read_pool(self, path: Path) -> dict[str, tuple[str, ...]]:
        """The negatives of all questions about an anchor, by anchor, without what any of them calls a needle."""
        file = self._open(path)
        negatives: dict[str, dict[str, None]] = {}
        needles: dict[str, set[str]] = {}
        for entry in file.entries:
            question = file.question(entry.place)
            if question.anchor is not None:
                negatives.setdefault(question.anchor, {}).update(dict.fromkeys(question.distractors))
                needles.setdefault(question.anchor, set()).update(question.needles)
        return {
            anchor: tuple(path for path in paths if path not in needles[anchor]) for anchor, paths in negatives.items()
        }

    def _find(self, path: str) -> Path:
        # The official paths start above the COCO folder.
        return self._coco / PurePosixPath(path.removeprefix("coco/"))


def _list_files(folder: Path) -> dict[str, Path]:
    files = {path.name: path for path in sorted(folder.glob("*.json")) if _FILE_NAME.fullmatch(path.name)}
    if not files:
        raise ValueError(f"--path: {folder}: expected a file, or a folder with visual_haystack_*.json")
    return files
