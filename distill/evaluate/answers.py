"""The answers of a run on disk, from the first on: a run that is killed loses the answers under way and no more."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distill.evaluate.measure import Outcome

ANSWERS_FILE = "answers.jsonl"
RUN_FILE = "run.json"
REPORT_FILE = "report.json"


class AnswersFile:
    """answers.jsonl, one line an answer, and run.json, which says what was asked of whom."""

    def __init__(self, folder: Path, identity: dict[str, Any], *, resume: bool) -> None:
        """Opens the folder, which need not exist.

        Args:
            identity: what the answers follow from, ready for JSON.
            resume: keeps the answers that are there; otherwise they are deleted, if their run came to its end.

        Raises:
            ValueError: the answers that are there are of another identity, or of a run that could be resumed.
        """
        self._path = folder / ANSWERS_FILE
        self.outcomes: list[Outcome] = []
        if self._path.exists():
            if resume:
                _check_identity(folder / RUN_FILE, identity)
                self.outcomes = _read_outcomes(self._path)
            elif not (folder / REPORT_FILE).exists():
                raise ValueError(
                    f"{self._path}: holds the answers of a run that did not end; add --resume to ask only what is "
                    "missing, or delete it, or name another --out"
                )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_FILE).unlink(missing_ok=True)
        _write(self._path, _lines(self.outcomes))
        _write(folder / RUN_FILE, json.dumps(identity, indent=2) + "\n")

    def __enter__(self) -> Self:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Writes one answer; no crash of this process loses it when this returns."""
        self._file.write(_lines([outcome]))
        self._file.flush()
        self.outcomes.append(outcome)

    def sort(self) -> None:
        """Orders the lines by size and index, however the answers came."""
        self.outcomes.sort(key=lambda outcome: outcome.place)
        _write(self._path, _lines(self.outcomes))


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    if not path.exists():
        raise ValueError(
            f"--resume: {path} is missing, which says what the answers beside it are to; name another --out"
        )
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for key in sorted(identity.keys() | earlier.keys()):
        if identity.get(key) != earlier.get(key):
            raise ValueError(
                f"--resume: {path}: {key}: {json.dumps(earlier.get(key))}, but this run has "
                f"{json.dumps(identity.get(key))}; name another --out, or leave --resume out"
            )


def _read_outcomes(path: Path) -> list[Outcome]:
    """All whole lines; a line that a crash cut off is left out."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [Outcome(**json.loads(line)) for line in complete.splitlines()]


def _lines(outcomes: Sequence[Outcome]) -> str:
    """One JSON object a line, without what does not apply to the task."""
    entries = [{key: value for key, value in asdict(outcome).items() if value is not None} for outcome in outcomes]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
