"""The soak's own judgement: of an answer, of counts, and of what grows."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest

from server.errors import BadRequestError, GatewayError, Reason
from server.gateway import make_gateway
from server.settings import Settings
from server.telemetry.context_class import ContextClass

Part = Callable[[str], ModuleType]
CHECKPOINT = Path(__file__).parents[2] / "distill" / "miniature" / "checkpoints" / "base"
EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
ERROR_EVENT = b'data: {"error": {"message": "gone", "type": "server_error", "code": "engine_failed"}}\n\n'
DONE_EVENT = b"data: [DONE]\n\n"
ERROR_BODY = b'{"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": "invalid_json"}}'


def response(status: int, body: bytes, *, cut: int = 0) -> bytes:
    """`cut` bytes of the body never come."""
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body) + cut}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


@pytest.fixture
async def answering() -> AsyncIterator[Callable[..., Any]]:
    """Starts a server that sends these bytes to everybody, and holds the connection if it is told to."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(content: bytes, *, hold: bool = False) -> str:
            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(content)
                if hold:
                    await reader.read()

            return await stack.enter_async_context(serving(answer))

        yield start


@contextlib.asynccontextmanager
async def serving(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """The URL of a server; it ends when every connection has."""
    connections = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    await asyncio.gather(*connections)


async def ask(part: Part, url: str, **settings: Any) -> Any:
    client_module = part("soak_bench.client")
    async with httpx.AsyncClient(base_url=url, timeout=None) as http:  # noqa: S113
        client = client_module.Client(http, deadline_seconds=settings.pop("deadline_seconds", 60))
        await client.ask(client_module.Ask(kind="test", **settings))
    (record,) = client.records
    return record


@pytest.mark.parametrize(
    ("content", "is_stream", "outcome", "reason"),
    [
        (response(200, b"{}"), False, "answered", None),
        (response(200, EVENT + DONE_EVENT), True, "answered", None),
        (response(400, ERROR_BODY), False, "failed", "invalid_json"),
        (response(400, ERROR_BODY), True, "failed", "invalid_json"),
        (response(200, EVENT + ERROR_EVENT), True, "failed", "engine_failed"),
        (response(200, EVENT), True, "lost", "a stream that ended without"),
        (response(200, EVENT + DONE_EVENT, cut=9), True, "lost", "RemoteProtocolError"),
        (response(200, b"{}", cut=1), False, "lost", "RemoteProtocolError"),
        (response(502, b"Bad Gateway"), False, "lost", "502 without an error"),
        (response(500, b'{"detail": "no"}'), True, "lost", "500 without an error"),
    ],
    ids=["whole", "stream", "error", "error to a stream", "error event", "no end", "cut stream", "cut", "text", "form"],
)
async def test_every_end_is_told_from_the_others(
    part: Part, answering: Any, content: bytes, is_stream: bool, outcome: str, reason: str | None
) -> None:
    record = await ask(part, await answering(content), is_stream=is_stream)

    assert record.outcome == outcome
    assert record.reason == reason or (record.reason or "").startswith(reason)


async def test_what_never_ends_hangs_and_who_is_told_to_leaves(part: Part, answering: Any) -> None:
    begun = b"HTTP/1.1 200 X\r\ncontent-length: 9999\r\n\r\n" + 3 * EVENT

    hung = await ask(part, await answering(begun, hold=True), is_stream=True, deadline_seconds=0.2)
    left = await ask(part, await answering(begun, hold=True), is_stream=True, leave_events=2)
    early = await ask(part, await answering(b"", hold=True), leave_seconds=0.1)

    assert [record.outcome for record in (hung, left, early)] == ["hung", "left", "left"]
    assert (left.status, early.status) == (200, None)


async def test_nobody_leaves_before_the_request_was_sent(part: Part) -> None:
    """On a busy machine a connection may take longer than the patience: the gateway would count nothing."""
    received = []

    async def take(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async with serving(take) as url:
        record = await ask(part, url, body=b"all of it", leave_seconds=0.0)

    assert record.outcome == "left"
    assert received[0].endswith(b"all of it")


async def test_a_stream_that_failed_or_ended_before_it_was_left_counts_so(part: Part, answering: Any) -> None:
    failed = await ask(part, await answering(response(200, ERROR_EVENT)), is_stream=True, leave_events=1)
    ended = await ask(part, await answering(response(200, EVENT + DONE_EVENT)), is_stream=True, leave_events=2)

    assert (failed.outcome, failed.reason, ended.outcome) == ("failed", "engine_failed", "answered")


async def test_counts_are_compared_with_the_gateways_own_exposition(part: Part) -> None:
    counts, record = part("soak_bench.counts"), part("soak_bench.record")
    gateway = make_gateway(Settings(checkpoint=CHECKPOINT))
    metrics = gateway.metrics.requests

    def scrape() -> Any:
        return counts.Scrape(gateway.metrics.exposition().decode())

    metrics.count_response("/v1/chat/completions", 200)
    before = scrape()
    ends = ((200, None), (400, Reason.INVALID_JSON), (499, Reason.CLIENT_LEFT), (200, Reason.ENGINE_FAILED))
    for status, reason in ends:
        metrics.count_response("/v1/chat/completions", status)
        if reason is not None:
            metrics.count_error(reason, ContextClass.UNCOUNTED)
    after = scrape()
    await gateway.aclose()

    def seen(outcome: str, status: int | None, reason: str | None = None) -> Any:
        return record.Record(kind="k", route="/v1/chat/completions", outcome=record.Outcome(outcome), status=status,
                             reason=reason, seconds=1.0)  # fmt: skip

    records = [seen("answered", 200), seen("failed", 400, "invalid_json"), seen("left", None),
               seen("failed", 200, "engine_failed")]  # fmt: skip
    assert counts.differences(records, before, after) == {}
    assert counts.differences(records[:2], before, after) == {
        "laid_requests_total /v1/chat/completions 200": (1, 2),
        "laid_requests_total /v1/chat/completions 499": (0, 1),
        "laid_errors_total client_left": (0, 1),
        "laid_errors_total engine_failed": (0, 1),
    }


def test_growth_is_the_last_third_beside_the_first(part: Part) -> None:
    vitals = part("soak_bench.vitals")

    def samples(values: list[int]) -> list[Any]:
        return [vitals.Vitals(resident_bytes=v, sockets=v, descriptors=v, threads=v) for v in values]

    flat = [100, 101, 99, 500, 100, 102, 98, 100, 101]
    assert vitals.thirds(samples(flat), "sockets") == (100, 100)
    assert vitals.thirds(samples(list(range(1, 10))), "resident_bytes") == (2, 8)
    with pytest.raises(ValueError, match="2 samples, expected 3 or more"):
        vitals.thirds(samples([1, 2]), "threads")


async def test_the_vitals_are_of_this_process(part: Part) -> None:
    vitals = part("soak_bench.vitals")
    found = vitals.look(psutil.Process())
    rest = await vitals.at_rest(psutil.Process(), seconds=1)

    assert found.resident_bytes > 10**6
    assert found.descriptors >= 4
    assert found.threads >= 1
    assert rest.descriptors >= 4


def test_the_load_asks_for_everything_and_differs_by_seed_alone(part: Part) -> None:
    load = part("soak_bench.load")
    keys = load.Keys(usual="a", limited="b")

    def asks(seed: int) -> list[Any]:
        return [next(caller.asks) for caller in load.make_callers(keys, seed) for _ in range(20)]

    kinds = Counter(ask.kind for ask in asks(0))
    assert set(kinds) == {"chat", "stream", "long stream", "100 images", "leaves", "bad", "limited", "probe"}
    assert asks(0) == asks(0)
    assert asks(0) != asks(1)
    # Who leaves must not, as the engine is killed.
    for caller in load.make_callers(keys):
        ask = next(caller.asks)
        assert caller.leaves == (ask.kind == "leaves")
        assert caller.leaves == (ask.leave_events is not None or ask.leave_seconds is not None)


def test_an_error_of_the_gateway_has_the_form_that_is_asked_for(part: Part) -> None:
    client = part("soak_bench.client")
    for error in (BadRequestError(Reason.INVALID_IMAGE, "no"), GatewayError(502, Reason.ENGINE_FAILED, "gone")):
        assert client.error_code(json.dumps(error.body()).encode()) == error.reason
