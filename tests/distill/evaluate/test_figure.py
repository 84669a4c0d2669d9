from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.evaluate.curve import CurvePoint
from distill.evaluate.figure import draw_curves
from distill.evaluate.report import Evaluation
from distill.evaluate.window import Threshold, effective_windows


def evaluation(counts: dict[int, int]) -> Evaluation:
    points = [
        CurvePoint(images=size, prompt_tokens=30 + 6.0 * size, items=100, correct=correct, compliant=100)
        for size, correct in counts.items()
    ]
    windows = effective_windows(points, [Threshold(value=0.6, kind="absolute")], seed=0)
    return Evaluation(
        task="miniature/open",
        measured="local",
        seed=0,
        items_per_size=100,
        points=tuple(points),
        windows=tuple(windows),
    )


STUDENT = evaluation({1: 100, 5: 98, 20: 95, 50: 80, 100: 55})
BASE = evaluation({1: 100, 5: 90, 20: 62, 50: 20, 100: 10})


def ink(path: Path) -> int:
    """Pixels that are not white."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 600
        return int((np.asarray(image.convert("L")) < 250).sum())


def test_a_second_curve_adds_ink(tmp_path: Path) -> None:
    draw_curves(tmp_path / "one.png", [("student", STUDENT)])
    draw_curves(tmp_path / "two.png", [("student", STUDENT), ("base", BASE)])
    assert ink(tmp_path / "two.png") > ink(tmp_path / "one.png") > 5_000


@pytest.mark.parametrize(
    "counts", [{20: 50}, {1: 100, 5: 100}, {1: 10, 5: 5}], ids=["one size", "censored", "no window"]
)
def test_odd_curves_are_drawn_too(tmp_path: Path, counts: dict[int, int]) -> None:
    draw_curves(tmp_path / "curve.png", [("odd", evaluation(counts))])
    assert ink(tmp_path / "curve.png") > 5_000
