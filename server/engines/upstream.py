"""One engine as the gateway sees it, and its failures as the gateway's errors."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from pydantic import HttpUrl

from server.engines.client import Client
from server.engines.connection import Answer, ConnectionFailedError, Pieces, SilentError, UnreachableError
from server.engines.health import Finding, Health
from server.engines.held_images import HeldImages, may_miss_images
from server.errors import EngineUnavailableError, GatewayError, Reason
from server.requests.engine_body import EngineBody
from server.settings import Settings

# What a vLLM that was told to end, and waits for its streams (--shutdown-timeout), says to new requests with status
# 500, though it passes its health check: the text is Python's, of concurrent.futures.
ENDING = "cannot schedule new futures after shutdown"


class Upstream:
    """One engine behind the gateway."""

    def __init__(self, name: str, url: HttpUrl, settings: Settings, *, on_health: Callable[[bool], None]) -> None:
        """
        Args:
            name: for logs and metrics, in place of its address.
            url: its base URL, without /v1.
            settings: the gateway's, with the model and context length that it must serve.
            on_health: called when it comes up or goes down.
        """
        self.url = str(url)
        self.health = Health(name, rise=settings.health_rise, fall=settings.health_fall, on_change=on_health)
        self._settings = settings
        self._held = HeldImages(settings.max_engine_images)
        self._client = Client(url, connect_timeout_seconds=settings.connect_timeout_seconds)

    @property
    def num_requests(self) -> int:
        """Requests from this gateway that it has not finished."""
        return self._client.num_exchanges

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    async def look(self) -> None:
        """Finds out whether it is well, and still serves what the gateway counts by."""
        try:
            status, _ = await self._get("/health")
            if status != 200:
                self.health.note(Finding(trouble=f"its health check answered {status}"))
                return
            _, models = await self._get("/v1/models")
        except ConnectionFailedError as failure:
            self.health.note(_finding(failure))
        else:
            self.health.note(self._compare(models))

    async def ask(self, path: str, body: EngineBody, headers: Mapping[str, str]) -> Answer:
        """The engine's answer with status 200, still arriving; closing it early cancels the request in the engine.

        Images that the engine is believed to hold are sent by name. If it does not, all are sent with their data.

        Raises:
            EngineUnavailableError: another engine may be asked: this one cannot be reached, closed the connection
                without an answer, or is not ready.
            GatewayError: it fails or refuses.
        """
        payload = await body.payload(self._held)
        try:
            answer = await self._post(path, payload.pieces, headers)
        except GatewayError as error:
            self._held.drop(payload.omitted)
            if not payload.omitted or not may_miss_images(error):
                raise
            payload = await body.payload(())
            answer = await self._post(path, payload.pieces, headers)
        self._held.add(body.uuids)
        return answer

    async def _post(self, path: str, body: Pieces, headers: Mapping[str, str]) -> Answer:
        try:
            answer = await self._client.ask(
                "POST",
                path,
                headers={"content-type": "application/json", **headers},
                body=body,
                silence_seconds=self._settings.first_byte_timeout_seconds,
            )
        except ConnectionFailedError as failure:
            self.health.note(_finding(failure))
            raise no_answer(failure, self._settings) from None
        if answer.status == 200:
            return answer
        with answer:
            raise _engine_error(answer.status, await _read(answer), self._settings)

    async def _get(self, path: str) -> tuple[int, bytes]:
        with await self._client.ask(
            "GET", path, headers={}, silence_seconds=self._settings.health_timeout_seconds
        ) as answer:
            return answer.status, await answer.read()

    def _compare(self, models: bytes) -> Finding:
        expected = (self._settings.model, self._settings.context_length)
        try:
            served = [(card["id"], card["max_model_len"]) for card in msgspec.json.decode(models)["data"]]
        except (msgspec.DecodeError, LookupError, TypeError):
            return Finding(trouble="it does not tell its models", is_certain=True)
        if expected in served:
            return Finding()
        told = ", ".join(f"{name} with {length} tokens" for name, length in served)
        trouble = f"it serves {told or 'nothing'}; expected {expected[0]} with {expected[1]} tokens"
        return Finding(trouble=trouble, is_certain=True)


def _finding(failure: ConnectionFailedError) -> Finding:
    return Finding(trouble=str(failure), is_certain=isinstance(failure, UnreachableError))


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
    if not isinstance(error, dict):
        error = {}
    if status in (502, 503) or error.get("message") == ENDING:  # itself, or a proxy before it
        return EngineUnavailableError(settings.retry_after_seconds)
    return engine_failure({**error, "code": status})


def _clean(message: Any) -> str:
    """The engine's message without addresses of the private network it runs in."""
    text = message if isinstance(message, str) else "The engine refused this request."
    return re.sub(r"https?://\S+", "[address]", text)[:2000]
