"""Asks one question and says what became of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from soak_bench.record import Outcome, Record

DONE = "[DONE]"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request to be sent."""

    kind: str
    body: bytes = b""
    method: str = "POST"
    path: str = "/v1/chat/completions"
    route: str | None = None
    """As the gateway names it, where that is not the path."""
    key: str | None = None
    is_stream: bool = False
    leave_events: int | None = None
    """A stream is left after so many events."""
    leave_seconds: float | None = None
    """An answer that is not a stream is left so long after the request was sent."""


class Client:
    """Sends requests over a pool of connections, and keeps a record of each."""

    def __init__(self, http: httpx.AsyncClient, *, deadline_seconds: float) -> None:
        """After the deadline a request counts as hung."""
        self._http = http
        self._deadline_seconds = deadline_seconds
        self.records: list[Record] = []

    async def ask(self, ask: Ask) -> httpx.Response | None:
        """Sends it and waits for its end; returns the response, without the body of a stream."""
        started = time.monotonic()
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._deadline_seconds):
                response, outcome, reason = await self._carry(ask)
        except TimeoutError:
            outcome, reason = Outcome.HUNG, "deadline"
        except httpx.HTTPError as error:
            outcome, reason = Outcome.LOST, repr(error)
        self.records.append(
            Record(
                kind=ask.kind,
                route=ask.route or ask.path,
                outcome=outcome,
                status=None if response is None else response.status_code,
                reason=reason,
                seconds=time.monotonic() - started,
            )
        )
        return response

    async def _carry(self, ask: Ask) -> tuple[httpx.Response | None, Outcome, str | None]:
        headers = {"content-type": "application/json"}
        if ask.key is not None:
            headers["authorization"] = f"Bearer {ask.key}"
        request = self._http.build_request(ask.method, ask.path, content=ask.body, headers=headers)
        if ask.leave_seconds is not None:
            return await self._send_and_leave(request, ask.leave_seconds)
        response = await self._http.send(request, stream=True)
        try:
            if ask.is_stream and response.status_code == httpx.codes.OK:
                return response, *await follow(response.aiter_lines(), leave_events=ask.leave_events)
            return response, *judge(response.status_code, await response.aread())
        finally:
            await response.aclose()

    async def _send_and_leave(
        self, request: httpx.Request, leave_seconds: float
    ) -> tuple[httpx.Response | None, Outcome, str | None]:
        """What was not yet sent cannot be left: the gateway would know nothing of it."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:

                async def on_event(name: str, _: dict[str, Any]) -> None:
                    if name == "http11.send_request_body.complete":
                        limit.reschedule(loop.time() + leave_seconds)

                request.extensions["trace"] = on_event
                response = await self._http.send(request)
        except TimeoutError:
            # The deadline's own end comes as a cancellation, not as this.
            return None, Outcome.LEFT, None
        return response, *judge(response.status_code, response.content)


def judge(status: int, content: bytes) -> tuple[Outcome, str | None]:
    """Outcome and reason of an answer that is not a stream."""
    if status == httpx.codes.OK:
        return Outcome.ANSWERED, None
    code = error_code(content)
    return (Outcome.LOST, f"{status} without an error in OpenAI's form") if code is None else (Outcome.FAILED, code)


async def follow(lines: AsyncIterator[str], *, leave_events: int | None = None) -> tuple[Outcome, str | None]:
    """Outcome and reason of a stream, read to its end or left after so many events."""
    failed, is_done, count = None, False, 0
    async for line in lines:
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        is_done = is_done or data == DONE
        failed = failed or error_code(data.encode())
        count += 1
        if count == leave_events and failed is None and not is_done:
            return Outcome.LEFT, None
    if failed is not None:
        return Outcome.FAILED, failed
    return (Outcome.ANSWERED, None) if is_done else (Outcome.LOST, "a stream that ended without [DONE] or an error")


def error_code(content: bytes) -> str | None:
    """The code of an error in OpenAI's form; None if that is not what it is."""
    try:
        value: Any = json.loads(content)
    except ValueError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return error.get("code") if isinstance(error, dict) and error.get("message") and error.get("type") else None
