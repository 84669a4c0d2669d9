"""How many requests of one key are served at the same time."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass

from server.errors import RateLimitError
from server.telemetry.metrics import Metrics
from server.traffic.caller import Caller
from server.traffic.leases import Leases

# How much the requests so far weigh in a key's mean duration when the next one ends.
MEMORY = 0.9


@dataclass
class _Use:
    serving: int = 0
    mean_seconds: float | None = None


class Slots:
    """Counts in this process and, where several gateways share a Redis, in all of them together.

    The process's own count holds while Redis does not answer.
    """

    def __init__(self, leases: Leases | None, metrics: Metrics, *, retry_after_seconds: float) -> None:
        """`leases` are those of all gateways; `retry_after_seconds` is told until a key's first request has ended."""
        self._leases = leases
        self._metrics = metrics.traffic
        self._retry_after_seconds = retry_after_seconds
        # By the names of configured keys.
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)

    @asynccontextmanager
    async def hold(self, caller: Caller) -> AsyncIterator[None]:
        """Holds a slot as long as the context is open.

        Raises:
            RateLimitError: all are taken; with as many requests as slots one ends, on average, in a slot's share of
                the mean duration.
            GatewayError: 503 where Redis does not answer and the settings say not to go on without.
        """
        limit, use = caller.limits.concurrency, self._uses[caller.name]
        if limit is not None and use.serving >= limit:
            raise self._refusal(caller)
        use.serving += 1
        try:
            async with self._place(caller) as is_free:
                if not is_free:
                    raise self._refusal(caller)
                started = time.monotonic()
                try:
                    yield
                finally:
                    _remember(use, time.monotonic() - started)
        finally:
            use.serving -= 1

    def _place(self, caller: Caller) -> AbstractAsyncContextManager[bool]:
        """Among those of all gateways, if it could be had."""
        limit = caller.limits.concurrency
        return nullcontext(True) if limit is None or self._leases is None else self._leases.hold(caller.name, limit)

    def _refusal(self, caller: Caller) -> RateLimitError:
        self._metrics.rate_limited["concurrency"].inc()
        limit, mean = caller.limits.concurrency or 1, self._uses[caller.name].mean_seconds
        return RateLimitError(
            f"This key may have {limit} requests served at the same time, and has.",
            retry_after_seconds=self._retry_after_seconds if mean is None else max(mean / limit, 0.001),
        )


def _remember(use: _Use, seconds: float) -> None:
    mean = use.mean_seconds
    use.mean_seconds = seconds if mean is None else MEMORY * mean + (1 - MEMORY) * seconds
