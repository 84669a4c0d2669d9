"""Reports with known curves, as distill evaluate writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.comparison.entry import Entry, Run
from distill.evaluate.curve import CurvePoint
from distill.evaluate.report import Evaluation
from distill.evaluate.window import RELATIVE_THRESHOLD, Threshold, effective_windows

ABSOLUTE = tuple(Threshold(value=value, kind="absolute") for value in (0.5, 0.6, 0.7))


def make_evaluation(counts: Mapping[int, int], items: int = 100, *, task: str = "miniature/open") -> Evaluation:
    """With so many right answers at each size."""
    points = [
        CurvePoint(images=size, prompt_tokens=30 + 6.0 * size, items=items, correct=correct, compliant=items)
        for size, correct in counts.items()
    ]
    relative = [Threshold(value=RELATIVE_THRESHOLD, kind="relative")] if 1 in counts else []
    windows = effective_windows(points, [*ABSOLUTE, *relative], seed=1)
    return Evaluation(
        task=task, measured="local", seed=1, items_per_size=items, points=tuple(points), windows=tuple(windows)
    )


def counted(name: str, *runs: Mapping[int, int], items: int = 100) -> Entry:
    """A row of which only counts are known."""
    return Entry(
        name=name,
        runs=tuple(Run(source=Path(name), evaluation=make_evaluation(run, items), correct=None) for run in runs),
    )


def answered(name: str, correct: Mapping[int, Sequence[bool]]) -> Entry:
    """A row of which each item's answer is known."""
    counts = {size: sum(each) for size, each in correct.items()}
    evaluation = make_evaluation(counts, len(next(iter(correct.values()))))
    by_size = {size: np.array(each) for size, each in correct.items()}
    return Entry(name=name, runs=(Run(source=Path(name), evaluation=evaluation, correct=by_size),))


def write_report(
    folder: Path, counts: Mapping[int, int], items: int = 100, *, task: str = "miniature/open", answers: bool = False
) -> Path:
    """A report folder whose model has the folder's name; the first items are the right ones."""
    folder.mkdir(parents=True)
    report = {
        "format": 1,
        "target": {"checkpoint": f"/models/{folder.name}"},
        "effective_window": make_evaluation(counts, items, task=task).to_dict(),
    }
    (folder / "report.json").write_text(json.dumps(report))
    if answers:
        lines = [
            json.dumps({"images": size, "index": index, "correct": index < right})
            for size, right in counts.items()
            for index in reversed(range(items))
        ]
        (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
    return folder
