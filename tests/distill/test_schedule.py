import itertools

import pytest

from distill.schedule import GammaSchedule, gamma_at, learning_rate_factor


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step"])
def test_gamma_starts_at_zero_ends_at_its_maximum_and_never_falls(schedule: GammaSchedule) -> None:
    values = [gamma_at(step / 100, schedule, 1.5) for step in range(101)]
    assert values[0] == 0
    assert values[-1] == 1.5
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_gamma_shapes_differ() -> None:
    assert gamma_at(0.25, "linear", 1.0) == 0.25
    assert gamma_at(0.25, "cosine", 1.0) == pytest.approx(0.1464466)
    assert [gamma_at(p, "step", 3.0) for p in (0.24, 0.26, 0.51, 0.76)] == [0, 1, 2, 3]


def test_learning_rate_warms_up_then_falls_to_almost_nothing() -> None:
    factors = [learning_rate_factor(step, 4, 24) for step in range(24)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert factors[14] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.01
