"""Where one request's time goes, phase by phase without a gap."""

import time
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple


class Phase(StrEnum):
    """What a request waits for, in order."""

    READ = "read"
    """From the first line of the request to the last byte of its body, its sender identified on the way."""
    FETCH = "fetch"
    """Images from links and uploaded files."""
    CHECK = "check"
    """Parsing, checking, counting."""
    QUEUE = "queue"
    """Rate limits and the wait for room in a lane."""
    FIRST_TOKEN = "first_token"  # noqa: S105 - no secret
    """From the engine's choice to the first event of its stream."""
    STREAM = "stream"
    """From the first event to the last."""
    ANSWER = "answer"
    """From the engine's choice to the whole answer, where it is not streamed."""


class Interval(NamedTuple):
    """One stretch of a phase, in seconds of the clock."""

    phase: Phase
    started: float
    ended: float


class Phases:
    """A stopwatch that is always in exactly one phase; a phase may come back, as checking does after fetching."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts in `read`."""
        self._clock = clock
        self._phase: Phase | None = Phase.READ
        self._started = clock()
        self.intervals: list[Interval] = []
        """Those that have ended, in order."""

    def begin(self, phase: Phase) -> None:
        """Ends the current phase and begins another."""
        self.end()
        self._phase = phase

    def end(self) -> None:
        """Ends the current phase; the request is over, or `begin` follows."""
        now = self._clock()
        if self._phase is not None:
            self.intervals.append(Interval(self._phase, self._started, now))
        self._phase, self._started = None, now

    def seconds(self) -> dict[Phase, float]:
        """How long each ended phase took in all."""
        seconds: dict[Phase, float] = {}
        for phase, started, ended in self.intervals:
            seconds[phase] = seconds.get(phase, 0.0) + ended - started
        return seconds

    def since_read(self) -> float:
        """Seconds since the request's last byte."""
        return self._clock() - self.intervals[0].ended

    def server_timing(self) -> str:
        """The phases that have ended as a `Server-Timing` header (milliseconds)."""
        return ", ".join(f"{phase.value};dur={1000 * seconds:.1f}" for phase, seconds in self.seconds().items())
