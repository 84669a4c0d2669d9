"""The HTTP client towards the engine, and its failures as the gateway's errors."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from server.errors import EngineUnavailableError, GatewayError, Reason
from server.settings import Settings

# vLLM closes idle connections after 5 s; a pool that drops them sooner seldom meets one that is being closed.
KEEPALIVE_SECONDS = 4.0
STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class Upstream:
    """One engine behind the gateway."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient) -> None:
        self._client = client
        self._settings = settings

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def is_ready(self) -> bool:
        """True if the engine answers its health check in time."""
        try:
            response = await self._client.get("/health", timeout=self._settings.ready_timeout_seconds)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    @asynccontextmanager
    async def chat(self, body: bytes, request_id: str) -> AsyncIterator[httpx.Response]:
        """The engine's open response with status 200; leaving the context early cancels the request in the engine.

        Raises:
            GatewayError: the engine cannot be reached, fails or refuses.
        """
        headers = {"content-type": "application/json", "x-request-id": request_id}
        request = self._client.build_request("POST", "/v1/chat/completions", content=body, headers=headers)
        response = await self._send(request)
        try:
            if response.status_code != 200:
                raise _engine_error(response.status_code, await _read(response), self._settings)
            yield response
        finally:
            await response.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            try:
                return await self._client.send(request, stream=True)
            except STALE:
                # Most likely an idle connection that the engine closed at this moment: no byte of an answer was lost.
                return await self._client.send(request, stream=True)
        except httpx.ReadTimeout:
            raise _timed_out() from None
        except httpx.TransportError:
            raise EngineUnavailableError(self._settings.retry_after_seconds) from None


def make_client(settings: Settings) -> httpx.AsyncClient:
    """A client for the engine; TCP_NODELAY is asyncio's default for its sockets."""
    silence, connect = settings.first_byte_timeout_seconds, settings.connect_timeout_seconds
    return httpx.AsyncClient(
        base_url=str(settings.upstream),
        timeout=httpx.Timeout(silence, connect=connect, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=KEEPALIVE_SECONDS),
        follow_redirects=False,
        trust_env=False,
    )


async def read_answer(response: httpx.Response, settings: Settings) -> dict[str, Any]:
    """The engine's whole JSON answer.

    Raises:
        GatewayError: the connection broke or the answer is not JSON.
    """
    try:
        answer = msgspec.json.decode(await response.aread())
    except httpx.ReadTimeout:
        raise _timed_out() from None
    except httpx.TransportError:
        raise EngineUnavailableError(settings.retry_after_seconds) from None
    except msgspec.DecodeError:
        raise GatewayError(502, Reason.ENGINE_FAILED, "The engine's answer is not valid.") from None
    if not isinstance(answer, dict):
        raise GatewayError(502, Reason.ENGINE_FAILED, "The engine's answer is not valid.")
    return answer


def engine_failure(error: Any) -> GatewayError:
    """An error event inside the engine's stream, without what is of no use to a client."""
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 500:
        return GatewayError(status, Reason.ENGINE_REFUSED, _clean(error.get("message")), param=error.get("param"))
    return GatewayError(500, Reason.ENGINE_FAILED, "The engine failed while it served this request.")


async def _read(response: httpx.Response) -> bytes:
    try:
        return await response.aread()
    except httpx.TransportError:
        return b""


def _engine_error(status: int, content: bytes, settings: Settings) -> GatewayError:
    try:
        error = msgspec.json.decode(content)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        error = {}
    if status == 503:
        return EngineUnavailableError(settings.retry_after_seconds)
    return engine_failure({**(error if isinstance(error, dict) else {}), "code": status})


def _clean(message: Any) -> str:
    """The engine's message without addresses of the private network it runs in."""
    text = message if isinstance(message, str) else "The engine refused this request."
    return re.sub(r"https?://\S+", "[address]", text)[:2000]


def _timed_out() -> GatewayError:
    return GatewayError(504, Reason.ENGINE_FAILED, "The engine did not answer in time.")
