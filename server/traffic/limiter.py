"""What each key uses a minute, counted in this process or, for several gateways together, in Redis."""

import asyncio
import math
from collections.abc import Coroutine, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage

from server.errors import RateLimitError
from server.telemetry.metrics import Metrics
from server.traffic.caller import Caller, Kind
from server.traffic.storage import PREFIX, Storage
from server.traffic.windows import WINDOW_SECONDS, Window, format_duration

T = TypeVar("T")
Costs = Mapping[Kind, int]


class _Limit(msgspec.Struct, frozen=True):
    """One limit of a key, and what a request takes of it."""

    kind: Kind
    amount: int
    key: str
    """Under which it is counted."""
    cost: int


class Limiter:
    """Limits a minute, as sliding window counters: two numbers a limit however large it is, and a check and its
    count are one step, in Redis a script. (A moving window would keep an entry for every single token.)

    It asks the storage itself, as `limits.aio.strategies.SlidingWindowCounterRateLimiter` does: a request's limits
    are read and counted under the names that it would give them.
    """

    def __init__(self, storage: Storage, metrics: Metrics) -> None:
        self._metrics = metrics.traffic
        self._storage = storage
        self._counters = _counters(storage)

    async def spend(self, caller: Caller, costs: Costs, headers: MutableMapping[str, str]) -> None:
        """Counts a request's use, all of it or, where one limit is too small, nothing; says what is left in `headers`.

        Raises:
            GatewayError: 429 over a limit; 503 where the limits cannot be read and the settings say not to go on.
        """
        limits = [
            _Limit(kind, amount, _key(caller.name, kind, amount), cost)
            for kind, cost in costs.items()
            if (amount := caller.limits.per_minute(kind)) is not None
        ]
        if not limits:
            return
        counted = await self._storage.attempt(self._count(limits))
        if counted is None:
            return
        is_counted, windows = counted
        for limit, window in zip(limits, windows, strict=True):
            headers[f"x-ratelimit-limit-{limit.kind}"] = str(limit.amount)
            headers[f"x-ratelimit-remaining-{limit.kind}"] = str(window.remaining)
            headers[f"x-ratelimit-reset-{limit.kind}"] = format_duration(window.reset_seconds)
        if not is_counted:
            raise self._refusal(limits, windows)

    async def _count(self, limits: Sequence[_Limit]) -> tuple[bool, Sequence[Window]]:
        """Whether the use was counted, and the limits' state after that."""
        windows = await self._read(limits)
        for limit, window in zip(limits, windows, strict=True):
            if window.remaining < limit.cost:
                return False, windows
        hit = self._counters.acquire_sliding_window_entry
        hits = [hit(limit.key, limit.amount, WINDOW_SECONDS, limit.cost) for limit in limits if limit.cost]
        if False in await self._all(hits):
            # Another request was faster, since the look and before the count.
            return False, await self._read(limits)
        return True, [window.after(limit.cost) for limit, window in zip(limits, windows, strict=True)]

    async def _read(self, limits: Sequence[_Limit]) -> list[Window]:
        read = self._counters.get_sliding_window
        states = await self._all([read(limit.key, WINDOW_SECONDS) for limit in limits])
        return [Window(limit.amount, *state) for limit, state in zip(limits, states, strict=True)]

    async def _all(self, works: Sequence[Coroutine[Any, Any, T]]) -> Sequence[T]:
        """Their results: from Redis in one round trip's time, from memory without a task for each."""
        if self._storage.pool is None:
            return [await work for work in works]
        return await asyncio.gather(*works)

    def _refusal(self, limits: Sequence[_Limit], windows: Sequence[Window]) -> RateLimitError:
        def seconds_until(place: int) -> float:
            limit, window = limits[place], windows[place]
            return math.inf if limit.cost > limit.amount else window.seconds_until(limit.cost)

        place = max(range(len(limits)), key=seconds_until)
        limit, window, seconds = limits[place], windows[place], seconds_until(place)
        self._metrics.rate_limited[limit.kind].inc()
        asked = f"This key may use {limit.amount} {limit.kind} a minute, and this request takes {limit.cost}"
        if seconds == math.inf:
            return RateLimitError(f"{asked}: no wait helps, send less.", retry_after_seconds=None)
        seconds = max(seconds, 0.001)
        return RateLimitError(
            f"{asked}: {window.remaining} are left now. Try again in {format_duration(seconds)}.",
            retry_after_seconds=seconds,
        )


@lru_cache(maxsize=4096)
def _key(name: str, kind: Kind, amount: int) -> str:
    return RateLimitItemPerMinute(amount, namespace="laid").key_for(name, kind)


def _counters(storage: Storage) -> MemoryStorage | RedisStorage:
    if storage.pool is None:
        return MemoryStorage()
    options: dict[str, Any] = {"connection_pool": storage.pool}
    # The address is the pool's; this one is only looked at for its scheme.
    return RedisStorage("async+redis://", implementation="redispy", key_prefix=PREFIX, **options)
