"""The state of one limit a minute: what is left of it, and when there will be more."""

import math

import msgspec

WINDOW_SECONDS = 60


class Window(msgspec.Struct, frozen=True):
    """A sliding window counter, as `limits` keeps it: the last minute's use is the current window's, and as much of
    the previous window's as still reaches into that minute."""

    limit: int
    previous: int
    previous_seconds: float
    """Until nothing of the previous window counts any more."""
    current: int
    current_seconds: float
    """Until nothing of the current window would count any more: up to two minutes."""

    @property
    def remaining(self) -> int:
        """How much of the limit is left now."""
        return max(0, self.limit - math.floor(self.previous * self.previous_seconds / WINDOW_SECONDS) - self.current)

    def after(self, cost: int) -> "Window":
        """The state once `cost` is counted."""
        return Window(
            self.limit,
            self.previous,
            self.previous_seconds,
            self.current + cost,
            self.current_seconds or 2.0 * WINDOW_SECONDS,
        )

    def seconds_until(self, cost: int) -> float:
        """How long until `cost`, at most the limit, is left, if nothing is used until then."""
        allowed = self.limit - cost
        if self.remaining >= cost:
            return 0.0
        if self.current <= allowed:
            # The previous window's share falls evenly.
            return self.previous_seconds - (allowed - self.current) * WINDOW_SECONDS / self.previous
        # By then the current window is the previous one.
        return self.current_seconds - allowed * WINDOW_SECONDS / self.current

    @property
    def reset_seconds(self) -> float:
        """How long until all of the limit is left again, if nothing is used until then."""
        return max(self.previous_seconds if self.previous else 0.0, self.current_seconds if self.current else 0.0)


def format_duration(seconds: float) -> str:
    """As OpenAI writes it in `x-ratelimit-reset-*`: 1ms, 12.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
