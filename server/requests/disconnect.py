"""Ends work for a client that has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from server.errors import GatewayError, Reason

T = TypeVar("T")


async def run_until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, or cancels it as soon as the client closes the connection.

    Call only after the request's body was read: from there on `receive` has nothing to give but the end.

    Raises:
        GatewayError: the client left (status 499, which nobody sees but the log and the metrics).
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GatewayError(499, Reason.CLIENT_LEFT, "The client closed the connection.")
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()
        # Waits until the cancelled work has closed its connection to the engine.
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
