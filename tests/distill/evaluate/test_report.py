import json
from pathlib import Path

import pytest

from distill.evaluate.measure import Outcome
from distill.evaluate.report import (
    Evaluation,
    compare,
    evaluate_outcomes,
    read_evaluation,
    write_report,
)

WINDOW_KEYS = {
    "threshold",
    "kind",
    "images",
    "images_low",
    "images_high",
    "tokens",
    "tokens_low",
    "tokens_high",
    "censored",
}


def outcomes(correct_by_size: dict[int, int], items: int = 10) -> list[Outcome]:
    """The first so many items of each size are right; every wrong answer but the last is a legal one."""
    return [
        Outcome(
            images=size,
            index=index,
            needle_index=0,
            truth="yes",
            answer="yes" if index < correct else "no",
            correct=index < correct,
            compliant=index < correct or index < items - 1,
            prompt_tokens=30 + 6 * size + index % 2,
        )
        for size, correct in correct_by_size.items()
        for index in range(items)
    ]


def evaluation(correct_by_size: dict[int, int], thresholds: tuple[float, ...] = (0.5,)) -> Evaluation:
    return evaluate_outcomes(outcomes(correct_by_size), thresholds, task="miniature/yes_no", measured="local", seed=3)


def test_the_block_of_laid_json() -> None:
    block = evaluation({10: 2, 1: 10, 5: 8}).to_dict()
    windows = block.pop("windows")
    curve = block.pop("curve")
    assert block == {
        "task": "miniature/yes_no",
        "threshold": 0.6,
        "confidence": 0.95,
        "items_per_size": 10,
        "seed": 3,
        "measured": "local",
    }
    assert [point["images"] for point in curve] == [1, 5, 10]
    assert curve[1] == {
        "images": 5,
        "prompt_tokens": 60.5,
        "accuracy": 0.8,
        "low": pytest.approx(0.490162, abs=1e-6),
        "high": pytest.approx(0.943318, abs=1e-6),
        "compliance": 0.9,
    }
    assert [(window["kind"], window["threshold"]) for window in windows] == [
        ("absolute", 0.5),
        ("absolute", 0.6),
        ("relative", 0.85),
    ]
    assert all(window.keys() == WINDOW_KEYS for window in windows)
    assert windows[1]["images"] == pytest.approx(5 + 5 * 0.2 / 0.6)
    assert windows[1]["tokens"] == pytest.approx(60.5 + 30 * 0.2 / 0.6)


def test_without_one_image_there_is_no_relative_window() -> None:
    assert {window.kind for window in evaluation({5: 8, 10: 2}).windows} == {"absolute"}


def test_a_block_reads_back_as_it_was() -> None:
    measured = evaluation({1: 10, 5: 7, 10: 3})
    assert Evaluation.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


@pytest.mark.parametrize("key", ["task", "curve", "windows", "items_per_size"])
def test_a_block_that_lacks_something_says_what(key: str) -> None:
    block = evaluation({1: 10, 5: 7}).to_dict()
    del block[key]
    with pytest.raises(ValueError, match=f"effective_window: '{key}'"):
        Evaluation.from_dict(block)


def test_the_report_reads_back_and_so_does_the_checkpoint(tmp_path: Path) -> None:
    measured, base = evaluation({1: 10, 5: 10, 10: 4}), evaluation({1: 10, 5: 4, 10: 1})
    factors = compare(measured, base)
    path = write_report(tmp_path, {"checkpoint": "student"}, measured, factors, seconds=1.23)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report.keys() == {
        "format",
        "created",
        "target",
        "seconds",
        "resumed",
        "sources",
        "effective_window",
        "window_factors",
    }
    assert [factor["threshold"] for factor in report["window_factors"]] == [0.5, 0.6, 0.85]
    assert report["window_factors"][1]["factor"] == pytest.approx((5 + 5 * 2 / 3) / (1 + 4 * 2 / 3))
    assert read_evaluation(path) == measured
    (tmp_path / "laid.json").write_text(json.dumps({"format": 1, "effective_window": base.to_dict()}))
    assert read_evaluation(tmp_path) == base


@pytest.mark.parametrize("content", [None, {"format": 1, "effective_window": None}], ids=["no file", "unmeasured"])
def test_a_checkpoint_that_was_never_evaluated_is_no_base(tmp_path: Path, content: object) -> None:
    if content:
        (tmp_path / "laid.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no effective_window there"):
        read_evaluation(tmp_path)


def test_another_task_is_no_base() -> None:
    other = evaluate_outcomes(outcomes({1: 9}), (), task="miniature/open", measured="local", seed=3)
    with pytest.raises(ValueError, match="--base: measured on miniature/open, expected miniature/yes_no"):
        compare(evaluation({1: 9}), other)
