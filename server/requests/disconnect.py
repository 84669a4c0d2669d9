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
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - of every coroutine
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise GatewayError(499, Reason.CLIENT_LEFT, "The client closed the connection.") from None
        raise
    finally:
        watcher.cancel()
