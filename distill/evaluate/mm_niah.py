"""MM-NIAH (arXiv 2406.07230) from its own files: needles in the text or in the images of long documents.

A size is a range of the document's length in the benchmark's own count of tokens, named by its lower edge, as in the
official figure; documents below the first edge are left out there and here. The prompt is the official one.

Official scores: a choice is right by its letter or number, a count by the share of matching places in the list, an
open answer if it contains the true one as a word. They are reproduced, but for VQA's table of contractions ("dont" to
"don't") and its numbers above ten, which apply to open answers. Ours is stricter: the letter, the list or the
phrase, and nothing else.
"""

import bisect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.data.json_file import JsonFile
from distill.evaluate.interleaved import PLACEHOLDER, Entry, InterleavedTask
from distill.evaluate.item import Item
from distill.evaluate.scoring import Score, score

_EDGES = (1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000)
_KINDS = ("retrieval", "counting", "reasoning")
_LETTERS = "ABCDEFGHIJ"
_COUNT_TOKENS, _PHRASE_TOKENS = 96, 32
_SPLIT_SIGNS = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class MmNiahTask(InterleavedTask):
    """One file of MM-NIAH, such as retrieval-image.jsonl."""

    official_scorer = "MM-NIAH: the letter, the share of matching counts, or the answer among the words"
    size_unit = "token"

    def __init__(self, path: Path, images: Path, seed: int) -> None:
        """Reads the file once, keeping of each question only where it is.

        Args:
            path: a file whose name says its kind, as the published ones do.
            images: the folder that the paths in the file start from.

        Raises:
            ValueError: another kind, or a malformed line.
        """
        if not any(kind in path.name for kind in _KINDS):
            raise ValueError(f"--path: {path.name}, expected a file of MM-NIAH: {', '.join(_KINDS)} is in its name")
        if not images.is_dir():
            raise ValueError(f"--images: {images}: no such folder, expected the images of MM-NIAH")
        super().__init__(_scan(JsonFile(path)), images, seed)
        self._path = path

    @property
    def name(self) -> str:
        """Such as "mm-niah/retrieval-image"."""
        return f"mm-niah/{self._path.stem}"

    def source(self, size: int) -> str:
        """See `Task`."""
        return f"{self._path.name}, context length from {size} tokens on"

    def item(self, size: int, index: int) -> Item:
        """Item `index` of a size; its images are read when they are needed."""
        file, place, num_images = self._entry(size, index)
        record = file.record(place)
        depths = record["meta"]["placed_depth"]
        depth = sum(depths) / len(depths) if isinstance(depths, list) else float(depths)
        options = _options(record)
        text = f"{record['context'].replace('</s>', '')}\n{record['question']}{_ending(record)}"
        is_count = isinstance(record["answer"], list)
        return Item(
            size=size,
            index=index,
            parts=self._interleave(text, _images(record)),
            answer=_LETTERS[record["answer"]] if options else _plain(record["answer"]),
            legal_answers=tuple(_LETTERS[: len(options)]) if options else None,
            needle_index=round(depth * (num_images - 1)),
            depth=depth,
            max_new_tokens=_COUNT_TOKENS if is_count else _PHRASE_TOKENS,
        )

    def score(self, item: Item, answer: str) -> Score:
        """Ours, and the official one beside it."""
        if item.legal_answers is not None:
            official = _official_choice(answer) == _LETTERS.index(item.answer)
            return replace(score(answer, item.answer, item.legal_answers), official=float(official))
        if "counting" in self._path.name:
            return _score_count(answer, json.loads(item.answer))
        official = re.search(rf"\b{re.escape(_vqa_words(item.answer))}\b", _vqa_words(answer)) is not None
        return replace(score(answer, item.answer, None), official=float(official))

    def identity(self) -> dict[str, Any]:
        """See `Task`; the file is told by its size and date."""
        stat = self._path.stat()
        return {
            "task": self.name,
            "seed": self.seed,
            "path": str(self._path.resolve()),
            "file": [stat.st_size, stat.st_mtime_ns],
        }


def _scan(file: JsonFile) -> Iterator[tuple[int, Entry]]:
    for place in file.scan():
        try:
            record = file.record(place)
            length = record["meta"]["context_length"]
            _check(record)
            num_images = len(_images(record))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.name(place)}: {error!r}, expected a question in the form of MM-NIAH") from error
        edge = bisect.bisect_right(_EDGES, length)
        if edge:
            yield _EDGES[edge - 1], Entry(file, place, num_images)


def _check(record: dict[str, Any]) -> None:
    options, answer = _options(record), record["answer"]
    if options and not (isinstance(answer, int) and 0 <= answer < len(options) <= len(_LETTERS)):
        raise ValueError(f"answer: {answer!r}, expected the index of one of {len(options)} choices")
    if not options and not isinstance(answer, str | list):
        raise ValueError(f"answer: {answer!r}, expected text, or a list of counts")
    text = record["context"] + record["question"]
    if text.count(PLACEHOLDER) != len(record["images_list"]):
        raise ValueError(f"{text.count(PLACEHOLDER)} times {PLACEHOLDER} for {len(record['images_list'])} images")


def _options(record: dict[str, Any]) -> list[str]:
    """The choices as the prompt shows them, none for an open question."""
    meta = record["meta"]
    return meta["choices"] or [PLACEHOLDER for _ in meta["choices_image_path"] or ()]


def _images(record: dict[str, Any]) -> list[str]:
    shown = [] if record["meta"]["choices"] else record["meta"]["choices_image_path"] or []
    return [*record["images_list"], *shown]


def _ending(record: dict[str, Any]) -> str:
    options = _options(record)
    if not options:
        return "\nAnswer the question using a single word or phrase."
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False))
    return f"{listed}\nAnswer with the option's letter from the given choices directly."


def _plain(answer: str | list[int]) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer)


def _score_count(answer: str, truth: list[int]) -> Score:
    """A list is right as a whole; officially each of its places counts."""
    strict = _parse_list(answer)
    lenient = _parse_list(answer.strip(".").replace("json", "").replace("```", ""))
    matches = sum(given == true for given, true in zip(lenient or [], truth, strict=False))
    return Score(correct=strict == truth, compliant=strict is not None, official=matches / len(truth))


def _parse_list(answer: str) -> list[Any] | None:
    try:
        parsed = json.loads(answer.strip())
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) else None


def _official_choice(answer: str) -> int | None:
    """The option that the official scorer reads from an answer, if any."""
    answer = answer.strip(".")
    if answer.isdigit():
        return int(answer)
    answer = answer.lower().replace("the answer is", "").replace("*", "")
    answer = answer.split(".")[0].replace(",", "").strip() if "." in answer else answer.strip()
    return ord(answer) - ord("a") if len(answer) == 1 else None


def _vqa_words(answer: str) -> str:
    """Lower case, without articles and signs, small numbers as digits: VQA's rules in short."""
    words = _SPLIT_SIGNS.sub(" ", answer.strip(".").lower()).replace(". ", " ").rstrip(".").split()
    return " ".join(str(_NUMBERS.index(word)) if word in _NUMBERS else word for word in words if word not in _ARTICLES)
