"""Against the paper's own table (arXiv 2512.21576), and where there is nothing to divide by."""

import math

import pytest

from distill.comparison.bootstrap import Bootstrap
from distill.comparison.compare import Comparison, compare
from distill.comparison.entry import Entry
from tests.distill.comparison.reports import answered, counted

SIZES = (1, 5, 10, 20, 50, 100, 150)
PAPER = {
    "7B": (8022, 6845, 6219, 5721, 5473, 5108, 4743),
    "7B LAid": (9283, 8326, 8046, 7409, 6704, 6337, 6017),
    "3B": (8591, 6570, 6209, 5216, 5022, 4780, 4167),
    "3B LAid": (9683, 8334, 7429, 6327, 5820, 5391, 5023),
}


def paper(name: str) -> Entry:
    return counted(name, dict(zip(SIZES, PAPER[name], strict=True)), items=10_000)


def comparison(*entries: Entry, base: str | None = None) -> Comparison:
    return compare(entries, base or entries[0].name, Bootstrap(num_replicates=300))


def test_the_paper_s_gains_come_out() -> None:
    base, laid = comparison(paper("7B"), paper("7B LAid")).rows
    assert laid.short_gain is not None
    assert laid.long_gain is not None
    assert laid.short_gain.value == pytest.approx(0.241, abs=5e-4)
    assert laid.long_gain.value == pytest.approx(0.245, abs=5e-4)
    for gain in (laid.short_gain, laid.long_gain):
        assert gain.high is not None
        assert gain.value - 0.03 < gain.low < gain.value < gain.high < gain.value + 0.03
    assert (base.factors, base.short_gain, base.long_gain) == (None, None, None)


def test_the_paper_s_window_factors_come_out() -> None:
    table = comparison(paper("3B"), paper("3B LAid"))
    base, laid = table.rows
    assert [threshold.value for threshold in table.thresholds] == [0.5, 0.6, 0.7, 0.85]
    # 62.09 % at 10 images and 52.16 % at 20; 63.27 % at 20 and 58.20 % at 50.
    assert base.windows[1].value == pytest.approx(10 + 10 * 2.09 / 9.93)
    assert laid.windows[1].value == pytest.approx(20 + 30 * 3.27 / 5.07)
    factors = laid.factors
    assert factors is not None
    assert factors[1] is not None
    assert factors[1].value == pytest.approx(3.25, abs=0.02)
    assert factors[2] is not None
    # 85.91 % at 1 image and 65.70 % at 5; 74.29 % at 10 and 63.27 % at 20.
    assert factors[2].value == pytest.approx((10 + 10 * 4.29 / 11.02) / (1 + 4 * 15.91 / 20.21))


def test_several_seeds_show_their_mean_and_its_windows() -> None:
    seeds = counted("seeds", {1: 100, 20: 80, 50: 20}, {1: 100, 20: 100, 50: 60})
    (row,) = comparison(seeds).rows
    assert [each.value for each in row.accuracies] == pytest.approx([1, 0.9, 0.4])
    assert row.windows[1].value == pytest.approx(20 + 30 * 0.3 / 0.5)
    for estimate in row.accuracies[1:]:
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
    # Each seed's own curve lies far outside what its items alone leave open, and inside this.
    assert row.accuracies[2].low < 0.25
    assert row.accuracies[2].high is not None
    assert row.accuracies[2].high > 0.55


def test_one_seed_keeps_the_interval_of_its_report() -> None:
    entry = counted("one", {1: 100, 20: 80})
    (row,) = comparison(entry).rows
    intervals = [point.interval for point in entry.runs[0].evaluation.points]
    assert [(each.low, each.high) for each in row.accuracies] == intervals


def test_a_model_against_itself_has_factor_1_without_doubt() -> None:
    correct = {size: [index < right for index in range(100)] for size, right in ((1, 99), (5, 80), (50, 30))}
    table = comparison(answered("base", correct), answered("same", correct))
    assert table.is_paired
    factors = table.rows[1].factors
    assert factors is not None
    assert all(factor and (factor.low, factor.value, factor.high) == (1, 1, 1) for factor in factors)


def test_models_with_other_numbers_of_items_are_not_paired() -> None:
    table = comparison(answered("a", {5: [True] * 9 + [False]}), answered("b", {5: [True, False]}))
    assert not table.is_paired


def test_a_window_without_an_end_is_a_lower_bound_and_no_base() -> None:
    table = comparison(counted("base", {1: 100, 20: 30}), counted("long", {1: 100, 20: 95}))
    factors = table.rows[1].factors
    assert factors is not None
    assert all(factor is not None and factor.at_least for factor in factors)
    turned = comparison(counted("long", {1: 100, 20: 95}), counted("base", {1: 100, 20: 30}))
    assert turned.rows[1].factors == (None, None, None, None)


def test_a_base_without_right_answers_gives_no_gain() -> None:
    row = comparison(counted("base", {1: 90, 5: 0, 50: 1}), counted("model", {1: 90, 5: 50, 50: 50})).rows[1]
    assert row.short_gain is None
    assert row.long_gain is not None
    # One right answer of 100: in a third of the replicates the base has none.
    assert (row.long_gain.value, row.long_gain.high) == (pytest.approx(49), None)
    assert math.isfinite(row.long_gain.low)


def test_gains_are_over_the_sizes_that_were_measured() -> None:
    table = comparison(counted("base", {2: 80, 10: 50}), counted("model", {2: 80, 10: 75}))
    assert (table.gain_sizes("short"), table.gain_sizes("long")) == ([10], [])
    assert table.rows[1].short_gain is not None
    assert table.rows[1].short_gain.value == pytest.approx(0.5)
    assert table.rows[1].long_gain is None


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(ValueError, match="--base: 'c', expected one of a, b"):
        comparison(counted("a", {1: 1}), counted("b", {1: 1}), base="c")
