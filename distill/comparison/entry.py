"""What is compared: one report, or the reports of several seeds of one method."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.evaluate.report import Evaluation, read_evaluation

Bools = NDArray[np.bool_]

_EXPECTED = "expected a report.json of distill evaluate, its folder, or an evaluated checkpoint"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model, evaluated once."""

    source: Path
    evaluation: Evaluation
    correct: dict[int, Bools] | None
    """Whether each item was answered right, in the items' order [N], by number of images; None where only counts are
    known, as in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the comparison."""

    name: str
    runs: tuple[Run, ...]
    """Of one seed each; nearly always one."""


def read_entries(arguments: Sequence[str]) -> list[Entry]:
    """Reads the command's `A.json` and `NAME=A.json,B.json`.

    Raises:
        ValueError: a file is not what it should be, two rows have one name, or tasks or sizes differ.
    """
    entries = [_read_entry(argument) for argument in arguments]
    _check_alike([run for entry in entries for run in entry.runs])
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice}: the name of two rows; give each its own, as in {twice}-2=REPORT")
    return entries


def _read_entry(argument: str) -> Entry:
    name, separator, paths = argument.partition("=")
    if not separator or "/" in name:
        # A folder's name may hold the sign too.
        name, paths = "", argument
    runs = tuple(_read_run(Path(path)) for path in (paths.split(",") if name else [paths]))
    return Entry(name=name or _own_name(runs[0].source), runs=runs)


def _read_run(path: Path) -> Run:
    if (path / "report.json").is_file():
        path = path / "report.json"
    if not path.exists():
        raise ValueError(f"{path}: not there, {_EXPECTED}")
    try:
        evaluation = read_evaluation(path)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not a report, {_EXPECTED}") from error
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    answers = path.parent / "answers.jsonl"
    has_answers = path.is_file() and answers.is_file()
    return Run(source=path, evaluation=evaluation, correct=_read_correct(answers, evaluation) if has_answers else None)


def _read_correct(path: Path, evaluation: Evaluation) -> dict[int, Bools]:
    answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # A run that was resumed with fewer items or sizes keeps the answers to the others.
    by_size = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: answer["index"]):
        by_size[answer.get("size", answer["images"])].append(answer)
    asked = [at_size[: evaluation.items_per_size] for at_size in by_size.values()]
    correct = {
        round(sum(answer["images"] for answer in at_size) / len(at_size)): np.array([a["correct"] for a in at_size])
        for at_size in asked
    }
    for point in evaluation.points:
        found = correct.get(point.images, np.array([], dtype=np.bool_))
        if (found.sum(), len(found)) != (point.correct, point.items):
            raise ValueError(
                f"{path}: {found.sum()} of {len(found)} answers are right at {point.images} images, but report.json "
                f"beside it says {point.correct} of {point.items}; expected files of one run"
            )
    return correct


def _own_name(source: Path) -> str:
    """The model's, by its report; a checkpoint's is its folder's."""
    if source.is_dir():
        return source.resolve().name
    target: dict[str, Any] = json.loads(source.read_text(encoding="utf-8")).get("target", {})
    return str(target.get("model") or Path(target.get("checkpoint") or source.resolve().parent).name)


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = first.evaluation, run.evaluation
        if ours.task != theirs.task:
            raise ValueError(
                f"task: {first.source} was measured on {ours.task} and {run.source} on {theirs.task}; "
                "expected one task, choose it with distill evaluate --kind"
            )
        sizes, other_sizes = ([point.images for point in each.points] for each in (ours, theirs))
        if sizes != other_sizes:
            raise ValueError(
                f"sizes: {first.source} was measured at {_join(sizes)} images and {run.source} at "
                f"{_join(other_sizes)}; expected the same numbers, give distill evaluate the same --sizes"
            )


def _join(sizes: Sequence[int]) -> str:
    return " ".join(map(str, sizes))
