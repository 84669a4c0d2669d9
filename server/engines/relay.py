"""Carries an admitted request to the engine and its answer back, streamed or whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.types import Send

from server.engines.connection import Answer, ConnectionFailedError
from server.engines.pool import EnginePool
from server.engines.upstream import Upstream, engine_failure, read_json
from server.engines.usage import complete_usage
from server.errors import GatewayError, Reason, StoppingError
from server.requests.admission import Admitted
from server.settings import Settings
from server.telemetry.logs import LOGGER
from server.telemetry.metrics import Metrics
from server.telemetry.phases import Phase
from server.telemetry.record import Record
from server.traffic.lanes import Room

EVENT_END = b"\n\n"
DONE = b"data: [DONE]\n\n"


class Relay:
    """One admitted request on its way; nothing of it outlives the answer."""

    def __init__(
        self,
        admitted: Admitted,
        *,
        engines: EnginePool,
        metrics: Metrics,
        settings: Settings,
        headers: dict[str, str],
        record: Record,
        prefill: Room,
    ) -> None:
        """`headers` go into the response; `prefill` is given back when the engine has begun to answer."""
        self._admitted = admitted
        self._engines = engines
        self._metrics = metrics
        self._settings = settings
        self._headers = headers
        self._record = record
        self._prefill = prefill

    async def carry(self, send: Send) -> None:
        """Asks the engine and sends its answer; cancelled, it cancels the request in the engine.

        Raises:
            GatewayError: only while no byte of the response was sent.
        """
        is_stream = self._admitted.parameters.stream
        self._record.phases.begin(Phase.FIRST_TOKEN if is_stream else Phase.ANSWER)
        await (self._stream(send) if is_stream else self._answer(send))

    async def _ask(self) -> Answer:
        return await self._engines.ask(self._admitted.affinity, self._ask_one)

    async def _ask_one(self, engine: Upstream) -> Answer:
        headers = {"x-request-id": self._record.request_id, **self._record.engine_headers}
        return await engine.ask(self._admitted.engine_path, self._admitted.body, headers)

    async def _answer(self, send: Send) -> None:
        with await self._ask() as answer:
            value = await read_json(answer, self._settings)
        self._record.phases.end()
        if isinstance(usage := value.get("usage"), dict):
            self._take_usage(usage)
        form = self._admitted.form
        body = msgspec.json.encode(value if form is None else form.whole(value))
        headers = self._headers | {"content-type": "application/json", "content-length": str(len(body))}
        await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        with await self._ask() as answer:
            headers = self._headers | {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            }
            await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
            form = self._admitted.form
            if form is not None:
                await send({"type": "http.response.body", "body": form.opening(), "more_body": True})
            try:
                last = await self._pump(answer, send)
            except asyncio.CancelledError:
                # Of a client that has left, nothing arrives; one that is there learns that the server stops.
                await send({"type": "http.response.body", "body": self._error_event(StoppingError())})
                raise
            if form is not None and last == DONE:
                last = form.closing()
        await send({"type": "http.response.body", "body": last})

    async def _pump(self, answer: Answer, send: Send) -> bytes:
        """Passes on what the engine sends as it comes, whole events, as many as there are; returns the last one.

        Many clients leave at `[DONE]`. It is held back until the engine has closed its stream, so that nobody who has
        the whole answer is counted as having left, and the connection to the engine is free for the next request.
        """
        first, last = True, b""
        with contextlib.suppress(ConnectionFailedError):
            async for events in _whole_events(answer):
                if first:
                    # The engine's first event comes with its first token.
                    self._prefill.release()
                    self._record.phases.begin(Phase.STREAM)
                    self._metrics.requests.observe_first_token(
                        self._record.phases.since_read(), self._record.context_class
                    )
                    first = False
                if events[-1] == DONE:
                    last = events.pop()
                passed = b"".join(self._pass(event) for event in events)
                if passed:
                    await send({"type": "http.response.body", "body": passed, "more_body": True})
        if last or self._record.error is not None:
            return last
        return self._error_event(GatewayError(502, Reason.ENGINE_FAILED, "The connection to the engine was lost."))

    def _pass(self, event: bytes) -> bytes:
        """An event as the client gets it; nearly all are the engine's own bytes."""
        # Quotes inside generated text are escaped, so that text never matches these.
        if event.startswith(b'data: {"error"'):
            return self._error_event(engine_failure(_event_json(event).get("error")))
        form = self._admitted.form
        if form is None and b'"usage":{' not in event:
            return event
        chunk = _event_json(event)
        is_last = not chunk.get("choices")
        if isinstance(usage := chunk.get("usage"), dict):
            self._take_usage(usage, compare=is_last)
        if form is not None:
            return form.chunk(chunk)
        if usage is None:
            return event
        if is_last and not self._admitted.parameters.include_usage:
            return b""
        return _event(chunk)

    def _take_usage(self, usage: dict[str, Any], *, compare: bool = True) -> None:
        counted, engine = self._admitted.count.prompt_tokens, usage.get("prompt_tokens")
        self._record.completion_tokens = usage.get("completion_tokens")
        complete_usage(usage, self._admitted.count)
        if compare and isinstance(engine, int):
            self._metrics.prompts.observe_usage(counted, usage)
            if counted != engine:
                fields = {"counted": counted, "engine": engine}
                LOGGER.warning("count_difference", extra={"fields": fields})

    def _error_event(self, error: GatewayError) -> bytes:
        self._record.error = error.reason
        form = self._admitted.form
        return _event(error.body()) if form is None else form.failed(error)


async def _whole_events(answer: Answer) -> AsyncIterator[list[bytes]]:
    """Regroups a byte stream into server-sent events, each with its end, as soon as they are complete."""
    rest = b""
    while chunk := await answer.next_chunk():
        *events, rest = (rest + chunk).split(EVENT_END)
        if events:
            yield [event + EVENT_END for event in events]
    if rest.strip():
        yield [rest + EVENT_END]


def _event_json(event: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(event.removeprefix(b"data: "))
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + EVENT_END


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
