"""One engine as the gateway sees it, and its failures as the gateway's errors."""

import re
from typing import Any

import msgspec

from server.engines.client import Client
from server.engines.connection import Answer, ConnectionFailedError, Pieces, SilentError
from server.engines.held_images import HeldImages, may_miss_images
from server.errors import EngineUnavailableError, GatewayError, Reason
from server.requests.engine_body import EngineBody
from server.settings import Settings


class Upstream:
    """One engine behind the gateway."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held = HeldImages(settings.max_engine_images)
        self._client = Client(settings.upstream, connect_timeout_seconds=settings.connect_timeout_seconds)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    async def is_ready(self) -> bool:
        """True if the engine answers its health check in time."""
        try:
            with await self._client.ask(
                "GET", "/health", headers={}, silence_seconds=self._settings.ready_timeout_seconds
            ) as answer:
                await answer.read()
        except ConnectionFailedError:
            return False
        return answer.status == 200

    async def ask(self, path: str, body: EngineBody, request_id: str) -> Answer:
        """The engine's answer with status 200, still arriving; closing it early cancels the request in the engine.

        Images that the engine is believed to hold are sent by name. If it does not, all are sent with their data.

        Raises:
            GatewayError: the engine cannot be reached, fails or refuses.
        """
        payload = await body.payload(self._held)
        try:
            answer = await self._post(path, payload.pieces, request_id)
        except GatewayError as error:
            self._held.drop(payload.omitted)
            if not payload.omitted or not may_miss_images(error):
                raise
            payload = await body.payload(())
            answer = await self._post(path, payload.pieces, request_id)
        self._held.add(body.uuids)
        return answer

    async def _post(self, path: str, body: Pieces, request_id: str) -> Answer:
        headers = {"content-type": "application/json", "x-request-id": request_id}
        try:
            answer = await self._client.ask(
                "POST",
                path,
                headers=headers,
                body=body,
                silence_seconds=self._settings.first_byte_timeout_seconds,
            )
        except ConnectionFailedError as failure:
            raise no_answer(failure, self._settings) from None
        if answer.status == 200:
            return answer
        with answer:
            raise _engine_error(answer.status, await _read(answer), self._settings)


async def read_json(answer: Answer, settings: Settings) -> dict[str, Any]:
    """The engine's whole JSON answer.

    Raises:
        GatewayError: the connection broke or the answer is not JSON.
    """
    try:
        value = msgspec.json.decode(await answer.read())
    except ConnectionFailedError as failure:
        raise no_answer(failure, settings) from None
    except msgspec.DecodeError:
        raise GatewayError(502, Reason.ENGINE_FAILED, "The engine's answer is not valid.") from None
    if not isinstance(value, dict):
        raise GatewayError(502, Reason.ENGINE_FAILED, "The engine's answer is not valid.")
    return value


def no_answer(failure: ConnectionFailedError, settings: Settings) -> GatewayError:
    """A failed connection as the client gets it, without addresses."""
    if isinstance(failure, SilentError):
        return GatewayError(504, Reason.ENGINE_FAILED, "The engine did not answer in time.")
    return EngineUnavailableError(settings.retry_after_seconds)


def engine_failure(error: Any) -> GatewayError:
    """An error event inside the engine's stream, without what is of no use to a client."""
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 500:
        return GatewayError(status, Reason.ENGINE_REFUSED, _clean(error.get("message")), param=error.get("param"))
    return GatewayError(500, Reason.ENGINE_FAILED, "The engine failed while it served this request.")


async def _read(answer: Answer) -> bytes:
    try:
        return await answer.read()
    except ConnectionFailedError:
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
