"""Removes expired files while the gateway runs, also where nobody uploads or asks for any."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from server.files.store import FileStore
from server.telemetry.logs import LOGGER
from server.telemetry.source_metrics import SourceMetrics

INTERVAL_SECONDS = 60


@asynccontextmanager
async def kept_up(store: FileStore | None, metrics: SourceMetrics, threads: Executor) -> AsyncIterator[None]:
    """Sweeps at once and then every minute, as long as the context is open."""
    if store is None:
        yield
        return
    task = asyncio.create_task(_sweep_forever(store, metrics, threads))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _sweep_forever(store: FileStore, metrics: SourceMetrics, threads: Executor) -> None:
    while True:
        try:
            usage = await asyncio.get_running_loop().run_in_executor(threads, _sweep, store)
        except (OSError, sqlite3.Error) as error:
            # The next round may find the disk well again.
            LOGGER.error("sweep_failed", exc_info=error)
        else:
            metrics.set_files(*usage)
        await asyncio.sleep(INTERVAL_SECONDS)


def _sweep(store: FileStore) -> tuple[int, int]:
    store.sweep()
    return store.usage()
