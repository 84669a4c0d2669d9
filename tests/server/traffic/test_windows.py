"""The arithmetic of the sliding window, by playing the time that it foretells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.traffic.windows import WINDOW_SECONDS, Window, format_duration


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """As storages give it: the current window ends when nothing of the previous one counts any more."""
    seconds = draw(st.floats(0.0, WINDOW_SECONDS))
    limit = draw(st.integers(1, 10_000))
    previous, current = draw(st.integers(0, limit)), draw(st.integers(0, limit))
    return Window(limit, previous, seconds if previous else 0.0, current, seconds + WINDOW_SECONDS if current else 0.0)


def later(window: Window, seconds: float) -> Window:
    """The same limit after some time without use."""
    if not window.current or window.current_seconds - seconds > WINDOW_SECONDS:
        rest = max(0.0, window.previous_seconds - seconds)
        return Window(window.limit, window.previous, rest, window.current, window.current_seconds - seconds)
    return Window(window.limit, window.current, max(0.0, window.current_seconds - seconds), 0, 0.0)


@given(windows(), st.data())
def test_the_time_told_is_enough_and_not_much_more(window: Window, data: st.DataObject) -> None:
    cost = data.draw(st.integers(1, window.limit))

    seconds = window.seconds_until(cost)

    assert 0 <= seconds <= 2 * WINDOW_SECONDS
    assert later(window, seconds + 1e-6).remaining >= cost
    if seconds > 0:
        # One less is used each time that a unit of the falling window's use is a minute old.
        falling = window.previous if window.current <= window.limit - cost else window.current
        assert later(window, max(0.0, seconds - 1.01 * WINDOW_SECONDS / falling - 1e-6)).remaining < cost


@given(windows())
def test_all_is_left_after_the_reset(window: Window) -> None:
    assert later(window, window.reset_seconds + 1e-6).remaining == window.limit
    assert (window.reset_seconds == 0) == (window.remaining == window.limit and not window.previous)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0001, "1ms"), (0.25, "250ms"), (1, "1s"), (12.5, "12.5s"), (59.9999, "1m0s"), (366, "6m6s")],
)
def test_durations_read_as_openais(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
