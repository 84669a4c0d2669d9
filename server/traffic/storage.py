"""Where the use of keys is counted: this process's memory or, for several gateways together, Redis."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.errors import GatewayError, Reason
from server.settings import Settings
from server.telemetry.logs import LOGGER
from server.telemetry.metrics import Metrics

T = TypeVar("T")
PREFIX = "laid"
"""Of every name in Redis."""


class Storage:
    """Asks Redis, where there is one, and decides what is done while it does not answer."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.pool = None if settings.limits_storage.startswith("memory://") else _make_pool(settings)
        """None: all is counted in this process."""
        self._settings = settings
        self._metrics = metrics.traffic
        self._is_failing = False

    async def aclose(self) -> None:
        """Closes the connections."""
        if self.pool is not None:
            await self.pool.aclose()

    async def attempt(self, work: Awaitable[T]) -> T | None:
        """What `work` returns; None where Redis does not answer and the settings say to go on without.

        Raises:
            GatewayError: 503 where they say not to.
        """
        if self.pool is None:
            # This process's own memory answers, and a busy loop is no reason to go on without limits.
            return await work
        try:
            async with asyncio.timeout(self._settings.limits_timeout_seconds):
                result = await work
        except (TimeoutError, OSError, RedisError) as error:
            self._note(error)
            if self._settings.limits_fail_open:
                return None
            raise GatewayError(
                503,
                Reason.LIMITS_UNAVAILABLE,
                "The use of this key cannot be counted now; try again later.",
                retry_after_seconds=self._settings.retry_after_seconds,
            ) from None
        self._is_failing = False
        return result

    def _note(self, error: Exception) -> None:
        self._metrics.limits_errors.inc()
        if not self._is_failing:
            self._is_failing = True
            LOGGER.error("limits_unavailable", extra={"fields": {"error": type(error).__name__}})


def _make_pool(settings: Settings) -> ConnectionPool:
    """Connections that fail at once rather than try again: a request waits for them."""
    seconds = settings.limits_timeout_seconds
    return ConnectionPool.from_url(
        settings.limits_storage,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
    )
