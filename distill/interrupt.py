"""Ctrl-C as a request instead of an accident."""

import signal
import types
from typing import Any, Self


class StopRequest:
    """Within this context the first SIGINT or SIGTERM only sets `is_set`; the next one interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, _number: int, _frame: types.FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
