"""The result of an evaluation, as it is written into laid.json and into the report folder."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.checkpoint import read_laid
from distill.evaluate.answers import REPORT_FILE
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
    """How: "local" through transformers, "vllm" offline, or "api" through a server."""

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


def check_base(base: Evaluation, task: str) -> None:
    """ValueError where the base was measured on another task."""
    if base.task != task:
        raise ValueError(f"--base: measured on {base.task}, expected {task}")


def compare(evaluation: Evaluation, base: Evaluation) -> list[WindowFactor]:
    """The window factors against a base measured on the same task; ValueError where the tasks differ."""
    check_base(base, evaluation.task)
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
    *,
    sources: dict[str, str] | None = None,
    official: dict[str, Any] | None = None,
    resumed: int = 0,
) -> Path:
    """Writes report.json into the folder, whole or not at all, and returns its path.

    Args:
        folder: exists.
        target: what was measured: {"checkpoint"} or {"url", "model"}.
        evaluation: the result.
        factors: window factors against a base, if one was given.
        seconds: time the answers took.
        sources: where the items of each size are from.
        official: `official_score`, for a task that has one.
        resumed: answers that an earlier run had given, whose time is not in `seconds`.
    """
    report: dict[str, Any] = {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "target": target,
        "seconds": round(seconds, 1),
        "resumed": resumed,
        "sources": sources or {},
        "effective_window": evaluation.to_dict(),
        "window_factors": [asdict(factor) for factor in factors],
    }
    if official is not None:
        report["official"] = official
    path = folder / REPORT_FILE
    partial = folder / f".{REPORT_FILE}.partial"
    partial.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def official_score(outcomes: Sequence[Outcome], scorer: str) -> dict[str, Any]:
    """What the task's own scorer makes of the same answers: one number a size, and their mean over all items."""
    sizes = sorted({outcome.place[0] for outcome in outcomes})
    by_size = [(size, [each for each in outcomes if each.place[0] == size]) for size in sizes]
    return {
        "scorer": scorer,
        "score": _mean_official(outcomes),
        "by_size": [{"size": size, "score": _mean_official(at_size)} for size, at_size in by_size],
    }


def _mean_official(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.official or 0.0 for outcome in outcomes) / len(outcomes)


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
