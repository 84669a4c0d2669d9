import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluate.curve import CurvePoint
from distill.evaluate.window import Threshold, crossing, effective_windows, window_factors

SIZES = (1, 5, 10, 20, 50, 100, 150)

# The paper's table: accuracies in % at SIZES.
BASE_3B = (85.91, 65.70, 62.09, 52.16, 50.22, 47.80, 41.67)
LAID_3B = (96.83, 83.34, 74.29, 63.27, 58.20, 53.91, 50.23)


def window(sizes: tuple[float, ...], accuracies: tuple[float, ...], threshold: float) -> tuple[float, bool]:
    images, censored = crossing(np.array(sizes), np.array([accuracies]), np.array([threshold]))
    return float(images[0]), bool(censored[0])


def curve(shares: tuple[float, ...], items: int = 100, sizes: tuple[int, ...] = SIZES) -> list[CurvePoint]:
    return [
        CurvePoint(
            images=size,
            prompt_tokens=30.0 + 6.0 * size,
            items=items,
            correct=round(share * items),
            compliant=items,
        )
        for size, share in zip(sizes, shares, strict=True)
    ]


def absolute(value: float) -> Threshold:
    return Threshold(value=value, kind="absolute")


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        pytest.param((1.0, 0.8, 0.4), (30.0, False), id="halfway between 20 and 40"),
        pytest.param((1.0, 0.6, 0.4), (20.0, False), id="touches at 20, then falls"),
        pytest.param((1.0, 0.4, 0.9), (10 + 10 * 0.4 / 0.6, False), id="first fall ends it, the rise does not count"),
        pytest.param((0.6, 0.6, 0.0), (20.0, False), id="flat at the threshold"),
        pytest.param((0.6, 0.5, 0.4), (10.0, False), id="falls from the first size on"),
        pytest.param((0.59, 0.9, 0.9), (0.0, False), id="below at the first size"),
        pytest.param((0.7, 0.65, 0.6), (40.0, True), id="never below"),
        pytest.param((0.6, 0.9, 0.61), (40.0, True), id="never below, not monotone"),
    ],
)
def test_crossing_of_60_percent_by_hand(accuracies: tuple[float, ...], expected: tuple[float, bool]) -> None:
    images, censored = window((10.0, 20.0, 40.0), accuracies, 0.6)
    assert (images, censored) == (pytest.approx(expected[0]), expected[1])


def test_a_curve_of_one_size() -> None:
    assert window((20.0,), (0.6,), 0.6) == (20.0, True)
    assert window((20.0,), (0.5,), 0.6) == (0.0, False)


def test_the_papers_factors_of_the_3b_student() -> None:
    for threshold, factor in ((60, 3.25), (70, 3.35)):
        student, _ = window(SIZES, LAID_3B, threshold)
        base, _ = window(SIZES, BASE_3B, threshold)
        assert student / base == pytest.approx(factor, abs=0.005)


curves = st.lists(st.integers(0, 100), min_size=2, max_size=7).map(lambda counts: tuple(c / 100 for c in counts))
thresholds = st.integers(1, 100).map(lambda count: count / 100)


def sizes_of(accuracies: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(size) for size in SIZES[: len(accuracies)])


@given(accuracies=curves, threshold=thresholds)
def test_accuracy_stays_at_or_above_up_to_the_window_and_falls_right_after(
    accuracies: tuple[float, ...], threshold: float
) -> None:
    sizes = sizes_of(accuracies)
    images, censored = window(sizes, accuracies, threshold)
    if images > 0:
        inside = np.interp(np.linspace(sizes[0], images, 50), sizes, accuracies)
        assert (inside >= threshold - 1e-6).all()
    if not censored:
        assert np.interp(images + 1e-3, sizes, accuracies) < threshold


@given(accuracies=curves, threshold=thresholds, position=st.integers(0, 6))
def test_a_better_answer_never_shortens_the_window(
    accuracies: tuple[float, ...], threshold: float, position: int
) -> None:
    sizes, position = sizes_of(accuracies), position % len(accuracies)
    better = (*accuracies[:position], min(1.0, accuracies[position] + 0.05), *accuracies[position + 1 :])
    assert window(sizes, better, threshold)[0] >= window(sizes, accuracies, threshold)[0] - 1e-6


@given(accuracies=curves, low=thresholds, high=thresholds)
def test_a_higher_threshold_never_lengthens_the_window(accuracies: tuple[float, ...], low: float, high: float) -> None:
    low, high = sorted((low, high))
    sizes = sizes_of(accuracies)
    assert window(sizes, accuracies, high)[0] <= window(sizes, accuracies, low)[0] + 1e-6


@given(accuracies=curves, threshold=thresholds, share=st.floats(0.1, 0.9))
def test_a_point_measured_on_the_line_changes_nothing(
    accuracies: tuple[float, ...], threshold: float, share: float
) -> None:
    sizes = sizes_of(accuracies)
    size = sizes[0] + share * (sizes[1] - sizes[0])
    between = float(np.interp(size, sizes, accuracies))
    with_point = window((sizes[0], size, *sizes[1:]), (accuracies[0], between, *accuracies[1:]), threshold)
    assert with_point == (pytest.approx(window(sizes, accuracies, threshold)[0], abs=1e-5), with_point[1])


@given(rows=st.lists(st.tuples(*[st.integers(0, 10)] * 4), min_size=1, max_size=5), threshold=thresholds)
def test_a_batch_is_its_rows(rows: list[tuple[int, ...]], threshold: float) -> None:
    sizes_S, accuracy_BS = np.array([1.0, 2.0, 5.0, 9.0]), np.array(rows) / 10
    images_B, censored_B = crossing(sizes_S, accuracy_BS, np.full(len(rows), threshold))
    for row, images, censored in zip(accuracy_BS, images_B, censored_B, strict=True):
        assert window(tuple(sizes_S), tuple(row), threshold) == (images, censored)


def test_windows_in_images_and_tokens() -> None:
    [measured] = effective_windows(curve((1, 1, 1, 0.8, 0.4, 0.2, 0.1)), [absolute(0.6)], seed=0)
    assert (measured.images, measured.tokens, measured.censored) == (
        pytest.approx(35),
        pytest.approx(240),
        False,
    )
    assert 20 < measured.images_low < 35 < measured.images_high < 50
    assert measured.tokens_low == pytest.approx(30 + 6 * measured.images_low)
    assert measured.tokens_high == pytest.approx(30 + 6 * measured.images_high)


def test_no_window_has_no_tokens() -> None:
    [measured] = effective_windows(curve((0.2,) * 7), [absolute(0.6)], seed=0)
    assert (measured.images, measured.tokens, measured.images_high, measured.censored) == (0, 0, 0, False)


def test_a_censored_window_is_a_lower_bound_at_the_last_size() -> None:
    [measured] = effective_windows(curve((0.9,) * 7), [absolute(0.6)], seed=0)
    assert (measured.images, measured.images_high, measured.censored) == (150, 150, True)


def test_the_relative_threshold_follows_the_models_own_one_image_accuracy() -> None:
    own = Threshold(value=0.85, kind="relative")
    points = curve((0.8, 0.8, 0.8, 0.76, 0.6, 0.4, 0.2))
    relative, fixed = effective_windows(points, [own, absolute(0.68)], seed=0)
    assert relative.images == pytest.approx(fixed.images) == pytest.approx(35)
    # The threshold moves from replicate to replicate, so its interval is not the fixed threshold's.
    assert (relative.images_low, relative.images_high) != (fixed.images_low, fixed.images_high)


def test_85_percent_of_a_perfect_model_is_met_by_exactly_85_percent() -> None:
    points = curve((1.0, 0.85), sizes=(1, 10))
    [measured] = effective_windows(points, [Threshold(value=0.85, kind="relative")], seed=0)
    assert measured.censored


def test_a_model_that_is_never_right_has_no_relative_window() -> None:
    [measured] = effective_windows(curve((0,) * 7), [Threshold(value=0.85, kind="relative")], seed=0)
    assert (measured.images, measured.censored) == (0, False)


def test_a_relative_threshold_needs_one_image() -> None:
    with pytest.raises(ValueError, match="a relative threshold needs size 1, the smallest here is 5"):
        effective_windows(curve((1, 1), sizes=(5, 10)), [Threshold(value=0.85, kind="relative")], seed=0)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_a_threshold_is_a_share(value: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        absolute(value)


def test_the_bootstrap_is_a_function_of_its_seed() -> None:
    points = curve((1, 0.95, 0.9, 0.8, 0.5, 0.3, 0.2))
    first, again, other = (effective_windows(points, [absolute(0.6)], seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_bootstrap_intervals_hold_the_true_window_about_95_times_in_100() -> None:
    shares = np.array([0.98, 0.95, 0.9, 0.8, 0.5, 0.3, 0.2])
    truth, _ = window(SIZES, tuple(shares), 0.6)
    rng = np.random.default_rng(11)
    held = []
    for _ in range(400):
        measured = curve(tuple(rng.binomial(100, shares) / 100))
        [estimate] = effective_windows(measured, [absolute(0.6)], seed=1, num_replicates=400)
        held.append(estimate.images_low <= truth <= estimate.images_high)
    # Four standard deviations of a binomial share at n = 400 are 0.044.
    assert np.mean(held) == pytest.approx(0.95, abs=0.045)


def test_intervals_narrow_with_the_square_root_of_the_items() -> None:
    shares = (1, 0.95, 0.9, 0.8, 0.5, 0.3, 0.2)
    few, many = (effective_windows(curve(shares, items), [absolute(0.6)], seed=1)[0] for items in (100, 1600))
    ratio = (few.images_high - few.images_low) / (many.images_high - many.images_low)
    assert ratio == pytest.approx(4, rel=0.25)


def test_window_factor_by_hand() -> None:
    base = curve((1, 1, 0.8, 0.4, 0.2, 0.1, 0.1), items=400)
    student = curve((1, 1, 1, 0.9, 0.7, 0.5, 0.3), items=400)
    [factor] = window_factors(student, base, [absolute(0.6)], seed=0)
    assert factor.factor == pytest.approx(75 / 15)
    assert factor.low is not None
    assert factor.high is not None
    assert factor.low < 5 < factor.high
    assert not factor.lower_bound
    assert window_factors(student, base, [absolute(0.6)], seed=0) == [factor]


def test_a_model_against_itself_has_factor_one() -> None:
    points = curve((1, 1, 0.8, 0.4, 0.2, 0.1, 0.1))
    [factor] = window_factors(points, points, [absolute(0.6)], seed=0)
    assert factor.factor == 1
    assert factor.low is not None
    assert factor.high is not None
    assert factor.low < 1 < factor.high


def test_a_censored_students_factor_is_a_lower_bound() -> None:
    base = curve((1, 1, 0.8, 0.4, 0.2, 0.1, 0.1))
    [factor] = window_factors(curve((1,) * 7), base, [absolute(0.6)], seed=0)
    assert (factor.factor, factor.lower_bound) == (pytest.approx(10), True)


def test_a_base_whose_window_is_unknown_or_missing_gives_no_factor() -> None:
    student = curve((0.9,) * 7)
    for share in (0.9, 0.1):
        [factor] = window_factors(student, curve((share,) * 7), [absolute(0.6)], seed=0)
        assert (factor.factor, factor.low, factor.high) == (None, None, None)


def test_a_base_that_hardly_has_a_window_gives_a_factor_without_bound() -> None:
    [factor] = window_factors(curve((0.9,) * 7), curve((0.61,) + (0.2,) * 6), [absolute(0.6)], seed=0)
    assert factor.high is None
    assert factor.factor is not None
    assert factor.low is not None
    assert 0 < factor.low < factor.factor
