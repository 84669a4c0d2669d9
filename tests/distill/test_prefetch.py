import contextlib
import threading

import pytest

from distill.prefetch import prefetched


@pytest.mark.parametrize("count", [0, 1, 5])
def test_values_come_in_order(count: int) -> None:
    assert list(prefetched(lambda step: step * 10, range(2, 2 + count))) == [10 * step for step in range(2, 2 + count)]


def test_the_next_value_is_made_before_it_is_asked_for_and_no_further() -> None:
    made: list[int] = []
    second = threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            second.set()
        return step

    with contextlib.closing(prefetched(make, range(10))) as values:
        assert next(values) == 0
        assert second.wait(timeout=30)
    assert made == [0, 1]


def test_an_error_is_raised_where_its_value_is_due() -> None:
    values = prefetched(lambda step: 1 / (step - 1), range(3))
    assert next(values) == -1
    with pytest.raises(ZeroDivisionError):
        next(values)
