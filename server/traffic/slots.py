"""How many requests of one key are served at the same time."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.errors import RateLimitError
from server.telemetry.metrics import Metrics
from server.traffic.caller import Caller

# How much the requests so far weigh in a key's mean duration when the next one ends.
MEMORY = 0.9


@dataclass
class _Use:
    serving: int = 0
    mean_seconds: float | None = None


class Slots:
    """Counts in this process alone; several gateways each have the whole limit."""

    def __init__(self, metrics: Metrics, *, retry_after_seconds: float) -> None:
        """`retry_after_seconds` is told until a key's first request has ended."""
        self._metrics = metrics.traffic
        self._retry_after_seconds = retry_after_seconds
        # By the names of configured keys.
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)

    @contextmanager
    def hold(self, caller: Caller) -> Iterator[None]:
        """Holds a slot as long as the context is open.

        Raises:
            RateLimitError: all are taken; with as many requests as slots one ends, on average, in a slot's share of
                the mean duration.
        """
        limit, use = caller.limits.concurrency, self._uses[caller.name]
        if limit is not None and use.serving >= limit:
            self._metrics.rate_limited["concurrency"].inc()
            seconds = self._retry_after_seconds if use.mean_seconds is None else max(use.mean_seconds / limit, 0.001)
            raise RateLimitError(
                f"This key may have {limit} requests served at the same time, and has.", retry_after_seconds=seconds
            )
        use.serving += 1
        started = time.monotonic()
        try:
            yield
        finally:
            use.serving -= 1
            seconds = time.monotonic() - started
            use.mean_seconds = (
                seconds if use.mean_seconds is None else MEMORY * use.mean_seconds + (1 - MEMORY) * seconds
            )
