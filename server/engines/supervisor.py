"""Keeps the gateway's own engine running."""

import asyncio
import time
from collections.abc import Callable

from server.engines.engine import Engine, EngineError, warm_up
from server.settings import Settings
from server.telemetry.logs import LOGGER

MAX_DELAY_SECONDS = 60.0


class Supervisor:
    """Starts an engine, and starts it again when it ends by itself."""

    def __init__(self, start: Callable[[], Engine], settings: Settings, *, start_timeout_seconds: float) -> None:
        """`start` gives a new engine each time, always at the same URL; the first is started here."""
        self._start = start
        self._settings = settings
        self._start_timeout_seconds = start_timeout_seconds
        self._start_seconds = 0.0
        self.engine = start()
        """The one that runs, or ran last."""

    async def bring_up(self) -> None:
        """Waits until the engine answers.

        Raises:
            EngineError: it does not.
        """
        started = time.monotonic()
        await self.engine.wait_until_ready(timeout_seconds=self._start_timeout_seconds)
        await warm_up(self.engine.url, self._settings.model, timeout_seconds=self._start_timeout_seconds)
        self._start_seconds = time.monotonic() - started

    async def keep_up(self, on_end: Callable[[float], None]) -> None:
        """Runs until cancelled, or until the engine has ended too often in a row.

        Args:
            on_end: called with the seconds after which the engine, which has just ended, should be back.

        Raises:
            EngineError: the settings' `max_engine_restarts` were in vain; holds the end of the last one's log.
        """
        num_restarts = 0
        while True:
            up_since = time.monotonic()
            await self.engine.wait_until_ended()
            if time.monotonic() - up_since >= self._settings.engine_steady_seconds:
                num_restarts = 0
            num_restarts = await self._restart(num_restarts, on_end)

    async def _restart(self, num_restarts: int, on_end: Callable[[float], None]) -> int:
        """Starts engines until one is up; returns how many restarts in a row that makes."""
        trouble = self.engine.last_words()
        while num_restarts < self._settings.max_engine_restarts:
            delay = min(MAX_DELAY_SECONDS, self._settings.engine_restart_seconds * 2**num_restarts)
            num_restarts += 1
            fields = {"restart": num_restarts, "seconds": delay}
            LOGGER.error("engine_ended", extra={"fields": fields})
            on_end(delay + self._start_seconds)
            # What is left of it may still hold its port and its memory.
            await asyncio.to_thread(self.engine.stop)
            await asyncio.sleep(delay)
            self.engine = self._start()
            try:
                await self.bring_up()
            except EngineError as error:
                trouble = error
            else:
                return num_restarts
        raise EngineError(f"restarted {num_restarts} times in a row, {trouble}")
