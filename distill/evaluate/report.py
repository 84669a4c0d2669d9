"""The result of an evaluation, as it is written into laid.json and into the report folder."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.checkpoint import read_laid
from distill.evaluate.curve import CONFIDENCE, CurvePoint, check_curve
from distill.evaluate.measure import Outcome, accuracy_curve
from distill.evaluate.window import (
    RELATIVE_THRESHOLD,
    Threshold,
    Window,
    WindowFactor,
    effective_windows,
    window_factors,
)

FORMAT = 1

DEFAULT_THRESHOLD = 0.6
"""The absolute threshold of the one window that stands for a model, as in the gateway; always reported."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A measured curve and the windows drawn from it: the `effective_window` block of laid.json."""

    task: str
    """Such as "miniature/open"."""

    measured: str
    """How: "local" through transformers, or "api" through a server."""

    seed: int
    items_per_size: int
    points: tuple[CurvePoint, ...]
    windows: tuple[Window, ...]

    @property
    def thresholds(self) -> list[Threshold]:
        """The windows' thresholds."""
        return [Threshold(value=window.threshold, kind=window.kind) for window in self.windows]

    @property
    def default_window(self) -> Window:
        """The one that stands for the model."""
        return next(w for w in self.windows if w.kind == "absolute" and w.threshold == DEFAULT_THRESHOLD)

    def to_dict(self) -> dict[str, Any]:
        """The block, ready for JSON."""
        return {
            "task": self.task,
            "threshold": DEFAULT_THRESHOLD,
            "confidence": CONFIDENCE,
            "items_per_size": self.items_per_size,
            "seed": self.seed,
            "measured": self.measured,
            "curve": [_point_to_dict(point) for point in self.points],
            "windows": [asdict(window) for window in self.windows],
        }

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "Evaluation":
        """Reads a block back; ValueError names what is missing or wrong."""
        try:
            points = tuple(_point_from_dict(point, block["items_per_size"]) for point in block["curve"])
            check_curve(points)
            return cls(
                task=block["task"],
                measured=block["measured"],
                seed=block["seed"],
                items_per_size=block["items_per_size"],
                points=points,
                windows=tuple(Window(**window) for window in block["windows"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"effective_window: {error}, expected a block written by distill evaluate") from error


def evaluate_outcomes(
    outcomes: Sequence[Outcome], thresholds: Sequence[float], *, task: str, measured: str, seed: int
) -> Evaluation:
    """The curve and its windows: at the absolute thresholds and, if size 1 was measured, at the relative."""
    points = accuracy_curve(outcomes)
    levels = [Threshold(value=value, kind="absolute") for value in sorted({*thresholds, DEFAULT_THRESHOLD})]
    if points[0].images == 1:
        levels.append(Threshold(value=RELATIVE_THRESHOLD, kind="relative"))
    return Evaluation(
        task=task,
        measured=measured,
        seed=seed,
        items_per_size=points[0].items,
        points=tuple(points),
        windows=tuple(effective_windows(points, levels, seed)),
    )


def compare(evaluation: Evaluation, base: Evaluation) -> list[WindowFactor]:
    """The window factors against a base measured on the same task; ValueError where the tasks differ."""
    if evaluation.task != base.task:
        raise ValueError(f"--base: measured on {base.task}, expected {evaluation.task}")
    return window_factors(evaluation.points, base.points, evaluation.thresholds, evaluation.seed)


def read_evaluation(path: Path) -> Evaluation:
    """Reads the evaluation of a report.json or of a checkpoint folder that holds one in its laid.json."""
    content = read_laid(path) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))
    block = (content or {}).get("effective_window")
    if block is None:
        raise ValueError(f"{path}: no effective_window there, run distill evaluate on it first")
    return Evaluation.from_dict(block)


def write_report(
    folder: Path,
    target: dict[str, str],
    evaluation: Evaluation,
    factors: Sequence[WindowFactor],
    seconds: float,
) -> Path:
    """Writes report.json into the folder and returns its path.

    Args:
        folder: exists.
        target: what was measured: {"checkpoint"} or {"url", "model"}.
        evaluation: the result.
        factors: window factors against a base, if one was given.
        seconds: time the answers took.
    """
    report = {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "target": target,
        "seconds": round(seconds, 1),
        "effective_window": evaluation.to_dict(),
        "window_factors": [asdict(factor) for factor in factors],
    }
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def write_answers(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Writes answers.jsonl, one line an item, into the folder and returns its path."""
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes), encoding="utf-8")
    return path


def _point_to_dict(point: CurvePoint) -> dict[str, float]:
    low, high = point.interval
    return {
        "images": point.images,
        "prompt_tokens": point.prompt_tokens,
        "accuracy": point.accuracy,
        "low": low,
        "high": high,
        "compliance": point.compliance,
    }


def _point_from_dict(point: dict[str, Any], num_items: int) -> CurvePoint:
    return CurvePoint(
        images=point["images"],
        prompt_tokens=point["prompt_tokens"],
        items=num_items,
        correct=round(point["accuracy"] * num_items),
        compliant=round(point["compliance"] * num_items),
    )
