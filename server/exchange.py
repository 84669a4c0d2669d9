"""One request from its body to its answer's last byte: the order in which everything is done to it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.engines.relay import Relay
from server.errors import GatewayError
from server.gateway import Gateway
from server.requests.admission import Admitted, Parse
from server.requests.disconnect import run_until_disconnect
from server.traffic.caller import Caller

T = TypeVar("T")


class Exchange(Response):
    """A request whose body was read; as a Starlette response it is sent after the handler returned it."""

    def __init__(self, gateway: Gateway, caller: Caller, body: bytes, parse: Parse) -> None:
        """`parse` is the route's own way to take its body apart."""
        super().__init__()
        self._gateway = gateway
        self._caller = caller
        self._body = body
        self._parse = parse
        self._started = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves until the answer ends or the client leaves, which ends all work for it, here and in the engine.

        Raises:
            GatewayError: only while no byte of the response was sent.
        """
        metrics = self._gateway.metrics
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            with metrics.requests_in_flight.track_inprogress():
                await run_until_disconnect(receive, self._serve(send_noting, scope["state"]["request_id"]))
        except GatewayError as error:
            if not has_begun:
                raise
            metrics.count_error(error.reason)
        else:
            metrics.request_seconds.observe(time.perf_counter() - self._started)

    async def _serve(self, send: Send, request_id: str) -> None:
        admitted = await self._admit()
        relay = Relay(
            admitted,
            upstream=self._gateway.upstream,
            metrics=self._gateway.metrics,
            settings=self._gateway.settings,
            headers=self._gateway.observe_window(admitted.count),
            started=self._started,
        )
        await relay.carry(send, request_id)

    async def _admit(self) -> Admitted:
        gateway = self._gateway
        started = time.perf_counter()
        draft = await self._in_thread(gateway.admission.parse, self._body, self._parse)
        admitted = await self._in_thread(gateway.admission.check, draft)
        gateway.metrics.admission_seconds.observe(time.perf_counter() - started)
        return admitted

    async def _in_thread(self, step: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._gateway.threads, step, *arguments)
