import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluate.curve import CurvePoint, check_curve, wilson_interval


def point(images: int, correct: int = 1, items: int = 2) -> CurvePoint:
    return CurvePoint(images=images, prompt_tokens=6.0 * images, items=items, correct=correct, compliant=items)


def test_wilson_interval_against_worked_values() -> None:
    # Wilson's formula at z = 1.959964, as statsmodels' proportion_confint(method="wilson") gives it.
    assert wilson_interval(50, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


@given(trials=st.integers(1, 500), data=st.data())
def test_wilson_interval_holds_the_share_and_mirrors(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_a_point_knows_its_shares() -> None:
    measured = CurvePoint(images=5, prompt_tokens=60.0, items=8, correct=6, compliant=7)
    assert (measured.accuracy, measured.compliance) == (0.75, 0.875)
    assert measured.interval == wilson_interval(6, 8)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "sizes: "),
        ([point(5), point(1)], "sizes: "),
        ([point(1), point(1)], "sizes: "),
        ([point(0)], "sizes: "),
        ([point(1, correct=3)], "size 1: 3 right answers out of 2 items"),
        ([point(1, correct=0, items=0)], "size 1: 0 right answers out of 0 items"),
    ],
    ids=["empty", "falling", "equal", "no image", "more right than asked", "no item"],
)
def test_what_is_no_curve(points: list[CurvePoint], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_curve(points)
