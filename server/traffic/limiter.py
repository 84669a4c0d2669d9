"""What each key uses a minute, counted in this process or, for several gateways together, in Redis."""

import asyncio
import math
from collections.abc import Awaitable, Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

import msgspec
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage

from server.errors import RateLimitError
from server.telemetry.metrics import Metrics
from server.traffic.caller import Caller
from server.traffic.storage import PREFIX, Storage
from server.traffic.windows import WINDOW_SECONDS, Window, format_duration

T = TypeVar("T")
Kind = Literal["requests", "tokens", "images"]
Costs = Mapping[Kind, int]
Windows = Mapping[Kind, Window]


class _Limit(msgspec.Struct, frozen=True):
    """One limit of a key, and what a request takes of it."""

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
        limits = {
            kind: _Limit(amount, _key(caller.name, kind, amount), cost)
            for kind, cost in costs.items()
            if (amount := getattr(caller.limits, f"{kind}_per_minute")) is not None
        }
        if not limits:
            return
        counted = await self._storage.attempt(self._count(limits))
        if counted is None:
            return
        is_counted, windows = counted
        for kind, window in windows.items():
            headers[f"x-ratelimit-limit-{kind}"] = str(window.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(window.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = format_duration(window.reset_seconds)
        if not is_counted:
            raise self._refusal(windows, costs)

    async def _count(self, limits: Mapping[Kind, _Limit]) -> tuple[bool, Windows]:
        """Whether the use was counted, and the limits' state after that."""
        windows = await self._read(limits)
        if any(windows[kind].remaining < limit.cost for kind, limit in limits.items()):
            return False, windows
        hit = self._counters.acquire_sliding_window_entry
        taken = [limit for limit in limits.values() if limit.cost]
        if all(await self._all(hit(limit.key, limit.amount, WINDOW_SECONDS, limit.cost) for limit in taken)):
            return True, {kind: windows[kind].after(limit.cost) for kind, limit in limits.items()}
        # Another request was faster, since the look and before the count.
        return False, await self._read(limits)

    async def _read(self, limits: Mapping[Kind, _Limit]) -> Windows:
        read = self._counters.get_sliding_window
        states = await self._all(read(limit.key, WINDOW_SECONDS) for limit in limits.values())
        return {kind: Window(limit.amount, *state) for (kind, limit), state in zip(limits.items(), states, strict=True)}

    async def _all(self, works: Iterable[Awaitable[T]]) -> Sequence[T]:
        """Their results: from Redis in one round trip's time, from memory without a task for each."""
        if self._storage.pool is None:
            return [await work for work in works]
        return await asyncio.gather(*works)

    def _refusal(self, windows: Windows, costs: Costs) -> RateLimitError:
        def seconds_until(kind: Kind) -> float:
            return math.inf if costs[kind] > windows[kind].limit else windows[kind].seconds_until(costs[kind])

        kind = max(windows, key=seconds_until)
        self._metrics.rate_limited[kind].inc()
        limit, seconds = windows[kind].limit, seconds_until(kind)
        asked = f"This key may use {limit} {kind} a minute, and this request takes {costs[kind]}"
        if seconds == math.inf:
            return RateLimitError(f"{asked}: no wait helps, send less.", retry_after_seconds=None)
        seconds = max(seconds, 0.001)
        return RateLimitError(
            f"{asked}: {windows[kind].remaining} are left now. Try again in {format_duration(seconds)}.",
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
