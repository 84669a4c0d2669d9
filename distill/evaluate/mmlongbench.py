"""MMLongBench's (arXiv 2505.10610) haystacks with one needle: vh_single, 8k to 128k tokens.

Its other files are refused by name: their forms or scorers are not reproduced here, or, as with vh_multi, we do not
know where they say the needles are.

The prompt is the official user message. The official run also writes "Answer:" as the start of the model's own
message, which a chat server does not take; here an answer may start with it. The official score takes the last "yes"
or "no" of an answer, and where there is none a guess that goes no, yes, yes, no through the file.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.data.json_file import JsonFile
from distill.evaluate.interleaved import PLACEHOLDER, Entry, InterleavedTask
from distill.evaluate.item import Item
from distill.evaluate.scoring import Score, score

_FILE_NAME = re.compile(r"vh_single_.*K(?P<length>\d+)_.*\.jsonl")
_OPENING = (
    "You are given a set of images. Please answer the question in Yes or No based on the given images. "
    "Write your answer in the following format:\nAnswer: [answer]\n\n"
)
_PREFIX = re.compile(r"^\s*answer:", re.IGNORECASE)
_WORD = re.compile(r"\b(yes|no)\b")
_GUESSES = ("no", "yes", "yes", "no")


class MmLongBenchTask(InterleavedTask):
    """The haystacks of one file or of a folder's files; a size is their length, K x 1,024 tokens."""

    official_scorer = "MMLongBench: the last yes or no of the answer, or a guess by its place in the file"
    size_unit = "token"

    def __init__(self, path: Path, images: Path, seed: int) -> None:
        """Reads the files once, keeping of each question only where it is.

        Args:
            path: a file of a published name, such as vh_single_test_1000_K8_dep6.jsonl, or a folder of them.
            images: the folder that the paths in the files start from.

        Raises:
            ValueError: other files, or a malformed line.
        """
        if not images.is_dir():
            raise ValueError(f"--images: {images}: no such folder, expected MMLongBench's images")
        paths = [path] if path.is_file() else sorted(path.glob("vh_single_*.jsonl"))
        names = [(each, _FILE_NAME.fullmatch(each.name)) for each in paths]
        unknown = [each.name for each, name in names if not name]
        if unknown or not paths:
            found = unknown[0] if unknown else "no such file"
            raise ValueError(f"--path: {path}: {found}, expected vh_single_..._K8_....jsonl or a folder of them")
        lengths = [(JsonFile(each), 1024 * int(name["length"])) for each, name in names if name]
        self._sources = {length: file.path.name for file, length in lengths}
        self._path, self._paths = path, paths
        super().__init__((entry for file, length in lengths for entry in _scan(file, length)), images, seed)

    @property
    def name(self) -> str:
        """ "mmlongbench/vh_single"."""
        return "mmlongbench/vh_single"

    def source(self, size: int) -> str:
        """See `Task`."""
        return self._sources[size]

    def item(self, size: int, index: int) -> Item:
        """Item `index` of a size; its images are read when they are needed."""
        file, place, num_images = self._entry(size, index)
        record = file.record(place)
        context = "\n".join(PLACEHOLDER for _ in record["ctxs"])
        depth = float(record["depth"])
        return Item(
            size=size,
            index=index,
            parts=self._interleave(f"{_OPENING}{context}\n\nQuestion: {record['question']}", record["ctxs"]),
            answer=record["answer"].lower(),
            legal_answers=("yes", "no"),
            needle_index=round(depth * (num_images - 1)),
            depth=depth,
        )

    def score(self, item: Item, answer: str) -> Score:
        """Ours, and the official one beside it."""
        words = _WORD.findall(answer.lower())
        place = self._entry(item.size, item.index).place
        official = words[-1] if words else _GUESSES[(place.number - 1) % len(_GUESSES)]
        ours = score(_PREFIX.sub("", answer), item.answer, item.legal_answers)
        return replace(ours, official=float(official == item.answer))

    def identity(self) -> dict[str, Any]:
        """See `Task`; the files are told by their sizes and dates."""
        stats = [path.stat() for path in self._paths]
        return {
            "task": self.name,
            "seed": self.seed,
            "path": str(self._path.resolve()),
            "files": [[stat.st_size, stat.st_mtime_ns] for stat in stats],
        }


def _scan(file: JsonFile, length: int) -> Iterator[tuple[int, Entry]]:
    for place in file.scan():
        try:
            record = file.record(place)
            if not isinstance(record["question"], str):
                raise TypeError("question")
            if str(record["answer"]).lower() not in ("yes", "no"):
                raise ValueError(f"answer: {record['answer']!r}, expected yes or no")
            if not 0 <= record["depth"] <= 1:
                raise ValueError(f"depth: {record['depth']!r}, expected 0 to 1")
            num_images = len(record["ctxs"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{file.name(place)}: {error!r}, expected "ctxs", "question", "answer", "depth"'
            ) from error
        yield length, Entry(file, place, num_images)
