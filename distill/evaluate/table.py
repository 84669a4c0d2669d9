"""The result on the terminal."""

from collections.abc import Sequence
from typing import Any

from distill.aligned import align
from distill.evaluate.report import Evaluation
from distill.evaluate.window import Kind, Window, WindowFactor


def format_table(evaluation: Evaluation, factors: Sequence[WindowFactor]) -> str:
    """Small tables of the curve, of the windows and, where there are any, of the window factors."""
    parts = [_curve(evaluation), _windows(evaluation)]
    if factors:
        parts.append(_factors(factors))
    return "\n\n".join(parts)


def format_official(official: dict[str, Any]) -> str:
    """One line: the task's own score of the same answers, at each size."""
    sizes = ", ".join(f"{100 * each['score']:.1f} % at {each['size']}" for each in official["by_size"])
    return f"official score {100 * official['score']:.1f} % ({sizes})\n{official['scorer']}"


def threshold_label(threshold: float, kind: Kind) -> str:
    """Such as "60 %" or, for a relative threshold, "85 % of own"."""
    return f"{100 * threshold:.0f} %" + (" of own" if kind == "relative" else "")


def window_label(window: Window) -> str:
    """Such as "88" or, for a censored window, "≥ 150": images, to the nearest."""
    return f"{'≥ ' if window.censored else ''}{window.images:.0f}"


def _curve(evaluation: Evaluation) -> str:
    rows = [("images", "prompt tokens", "accuracy", "95 % interval", "compliant")]
    for point in evaluation.points:
        low, high = point.interval
        rows.append(
            (
                str(point.images),
                f"{point.prompt_tokens:.0f}",
                f"{100 * point.accuracy:.1f} %",
                f"{100 * low:.1f} - {100 * high:.1f}",
                f"{100 * point.compliance:.1f} %",
            )
        )
    return f"{evaluation.task}, {evaluation.items_per_size} items a size\n{align(rows)}"


def _windows(evaluation: Evaluation) -> str:
    rows = [("threshold", "effective window", "95 % interval", "in tokens", "95 % interval")]
    for window in evaluation.windows:
        label = threshold_label(window.threshold, window.kind)
        rows.append(
            (
                f"{label} *" if window == evaluation.default_window else label,
                f"{window_label(window)} images",
                f"{window.images_low:.0f} - {window.images_high:.0f}",
                f"{'≥ ' if window.censored else ''}{window.tokens:.0f}",
                f"{window.tokens_low:.0f} - {window.tokens_high:.0f}",
            )
        )
    notes = ["* the one a gateway shows"]
    if any(window.censored for window in evaluation.windows):
        notes.append("≥ never below the threshold at the sizes measured: a lower bound")
    return "\n".join([align(rows), *notes])


def _factors(factors: Sequence[WindowFactor]) -> str:
    rows = [("threshold", "window factor", "95 % interval")]
    for factor in factors:
        label = threshold_label(factor.threshold, factor.kind)
        if factor.factor is None or factor.low is None:
            rows.append((label, "none", "-"))
            continue
        high = "no bound" if factor.high is None else f"{factor.high:.2f}"
        bound = "≥ " if factor.lower_bound else ""
        rows.append((label, f"{bound}{factor.factor:.2f}", f"{factor.low:.2f} - {high}"))
    if all(factor.factor is not None for factor in factors):
        return align(rows)
    return f"{align(rows)}\nnone: the base's window is 0, or has no end at the sizes measured"
