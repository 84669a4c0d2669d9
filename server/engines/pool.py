"""All engines behind the gateway: which one is asked, and which one after it.

The choice needs nothing that several gateways would have to share: a key's order of engines follows from the key and
the engines' addresses, and whether an engine is up each gateway sees for itself.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from server.engines.affinity import rank
from server.engines.connection import Answer
from server.engines.health import Finding
from server.engines.upstream import Upstream
from server.errors import EngineUnavailableError
from server.settings import Settings
from server.telemetry.engine_metrics import EngineMetrics


class EnginePool:
    """Engines that serve the same model with the same context length, any of which can answer any request."""

    def __init__(self, engines: Sequence[Upstream], settings: Settings, metrics: EngineMetrics) -> None:
        """`engines` have different URLs."""
        self._engines = {engine.url: engine for engine in engines}
        self._settings = settings
        self._metrics = metrics
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """True if an engine is up."""
        return any(engine.health.is_up for engine in self._engines.values())

    async def start(self) -> None:
        """Looks at every engine once, and from then on in the background."""
        await asyncio.gather(*(engine.look() for engine in self._engines.values()))
        self._watchers = [asyncio.create_task(self._watch(engine)) for engine in self._engines.values()]

    async def aclose(self) -> None:
        """Ends the looking and closes the connections."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for engine in self._engines.values():
            engine.close()

    async def ask(self, key: Callable[[], bytes], request: Callable[[Upstream], Awaitable[Answer]]) -> Answer:
        """The answer of the engine to which `key` belongs or, if that cannot be had, of one other.

        Only one other, and only here, before the client got a byte: a request that ends an engine cannot go round
        and end all of them, and no answer begins twice.

        Raises:
            GatewayError: no engine is up, or `request` raised it.
        """
        first = self.choose(key)
        try:
            return await request(first)
        except EngineUnavailableError:
            if not any(engine.health.is_up for engine in self._engines.values() if engine is not first):
                raise self.unavailable() from None
        self._metrics.count_failover()
        return await request(self.choose(key, without=first))

    def choose(self, key: Callable[[], bytes], *, without: Upstream | None = None) -> Upstream:
        """The first engine in the key's order that is up and is not much fuller than the others.

        How much is the setting `engine_load_factor`, over the mean of all (consistent hashing with bounded loads,
        Mirrokni, Thorup and Zadimoghaddam, 2018); under `engine_spill_requests` nothing counts as full.

        Raises:
            EngineUnavailableError: none is up.
        """
        up = {url: engine for url, engine in self._engines.items() if engine.health.is_up and engine is not without}
        if not up:
            raise self.unavailable()
        if len(up) == 1:
            return next(iter(up.values()))
        mean = (sum(engine.num_requests for engine in up.values()) + 1) / len(up)
        limit = max(self._settings.engine_spill_requests, math.ceil(self._settings.engine_load_factor * mean))
        ranked = [up[url] for url in rank(key(), up)]
        return next((engine for engine in ranked if engine.num_requests < limit), ranked[0])

    def unavailable(self) -> EngineUnavailableError:
        """The error for a request that no engine can take now, with the time at which one may."""
        back = min(engine.health.seconds_until_back() for engine in self._engines.values())
        return EngineUnavailableError(max(self._settings.retry_after_seconds, math.ceil(back)))

    def expect_back(self, seconds: float) -> None:
        """The gateway's own engine, its only one, has ended, and should be back in so many seconds."""
        for engine in self._engines.values():
            engine.health.note(Finding(trouble="it ended", is_certain=True))
            engine.health.back_at = time.monotonic() + seconds
        self._metrics.count_restart()

    async def _watch(self, engine: Upstream) -> None:
        while True:
            await asyncio.sleep(self._settings.health_interval_seconds)
            await engine.look()
