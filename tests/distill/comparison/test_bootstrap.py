from pathlib import Path

import numpy as np
import pytest

from distill.comparison.bootstrap import Bootstrap
from distill.comparison.entry import Entry, Run
from distill.evaluate.window import interval
from tests.distill.comparison.reports import answered, counted, make_evaluation

NUM_REPLICATES = 500


def draw(*entries: Entry) -> list[np.ndarray]:
    bootstrap = Bootstrap(num_replicates=NUM_REPLICATES)
    return [bootstrap.curves(entry) for entry in entries]


def test_the_same_entries_get_the_same_draws() -> None:
    for first, second in zip(*(draw(counted("a", {1: 90, 5: 50}, {1: 80, 5: 60})) for _ in range(2)), strict=True):
        assert np.array_equal(first, second)


def test_items_are_drawn_together_for_models_that_answered_the_same_ones() -> None:
    half = [True, False] * 50
    first, same, opposite, other = draw(
        answered("first", {5: half}),
        answered("same", {5: half}),
        answered("opposite", {5: [not each for each in half]}),
        counted("other", {5: 50}),
    )
    assert np.array_equal(first, same)
    assert first + opposite == pytest.approx(np.ones((NUM_REPLICATES, 1)))
    assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.2


@pytest.mark.parametrize("known", ["answers", "counts"])
def test_the_spread_of_one_seed_is_the_binomial_one(known: str) -> None:
    entry = counted("a", {5: 30}) if known == "counts" else answered("a", {5: [True] * 30 + [False] * 70})
    (curves,) = draw(entry)
    assert curves.mean() == pytest.approx(0.3, abs=0.01)
    assert curves.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 100), rel=0.15)


def test_the_spread_between_seeds_is_unbiased() -> None:
    """Where items vary next to nothing, the variance of the mean is that of the seeds over their number."""
    shares = [0.4, 0.5, 0.8]
    (curves,) = draw(counted("a", *({5: round(1_000_000 * share)} for share in shares), items=1_000_000))
    assert curves.var() == pytest.approx(np.var(shares, ddof=1) / 3, rel=0.15)


def test_equal_seeds_vary_no_more_than_their_items() -> None:
    one, three = draw(counted("one", {5: 50}), counted("three", *[{5: 50}] * 3))
    assert 0 < three.std() < one.std()


def test_the_interval_of_several_seeds_contains_the_truth() -> None:
    """Sixty methods whose seeds scatter around a true accuracy of 60 %, 200 items each."""
    rng = np.random.default_rng(3)
    hits = {"seeds": 0, "one seed": 0}
    for _ in range(60):
        accuracies = np.clip(rng.normal(0.6, 0.05, size=3), 0, 1)
        runs = tuple(
            Run(
                source=Path("run"),
                evaluation=make_evaluation({5: int(rng.binomial(200, accuracy))}, 200),
                correct=None,
            )
            for accuracy in accuracies
        )
        for name, chosen in (("seeds", runs), ("one seed", runs[:1])):
            (curves,) = draw(Entry(name=name, runs=chosen))
            low, high = interval(curves[:, 0])
            hits[name] += low <= 0.6 <= high
    assert hits["seeds"] >= 54
    # What the interval of items alone misses.
    assert hits["one seed"] < hits["seeds"]


def test_intervals_are_order_statistics() -> None:
    values = np.arange(1001.0)
    assert interval(values) == (25, 975)
    assert interval(np.concatenate([values[:900], [np.inf] * 101])) == (25, np.inf)
