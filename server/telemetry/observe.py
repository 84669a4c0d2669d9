"""Gives every request an id and a record, and counts and logs every response."""

import secrets
import time
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Reason
from server.telemetry.logs import LOGGER, REQUEST_ID
from server.telemetry.metrics import Metrics
from server.telemetry.record import Record
from server.telemetry.tracing import Tracing


class Observe:
    """Plain ASGI middleware: it neither buffers nor hides a disconnect."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        REQUEST_ID.set(request_id)
        record = Record(request_id)
        scope.setdefault("state", {}).update(request_id=request_id, record=record)
        span = None if self._tracing is None else self._tracing.begin(scope["path"], Headers(scope=scope), record)
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_headers(record)]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            record.error = Reason.INTERNAL
            raise
        finally:
            # The pattern under which the app knows the path, never the path: that is the client's to choose.
            route = getattr(scope.get("route"), "path", "other")
            status = record.status or 500
            if self._tracing is not None and span is not None:
                self._tracing.end(span, record, status)
            if record.error is not None:
                self._metrics.requests.count_error(record.error, record.context_class)
            self._metrics.requests.count_response(route, status)
            fields = {
                "method": scope["method"] if scope["method"] in {"GET", "POST", "DELETE"} else "other",
                "route": route,
                "status": status,
                "error": record.error,
                "prompt_tokens": record.prompt_tokens,
                "images": record.num_images,
                "seconds": round(time.perf_counter() - started, 4),
            }
            LOGGER.info("response", extra={"fields": fields})


def _headers(record: Record) -> Iterator[tuple[bytes, bytes]]:
    """What every answer carries, and no route sets."""
    yield b"x-request-id", record.request_id.encode()
    for name, value in record.headers.items():
        yield name.encode(), value.encode()
    if record.phases.intervals:
        yield b"server-timing", record.phases.server_timing().encode()
