"""Traces reach an OTLP receiver with the client's context, and hold nothing of what was said."""

import asyncio
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.telemetry.tracing import make_tracing

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
MARK = "Xylophon-4711"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PATIENCE_SECONDS = 120


class Receiver:
    """Takes what exporters post to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


async def wait_for_spans(receiver: Receiver, number: int) -> dict[str, Span]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(receiver.spans()) < number:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return {span.name: span for span in receiver.spans()}


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


async def test_a_request_is_a_span_with_its_phases_below_and_its_context_passed_on(
    receiver: Receiver, cued_engine: Any, start_gateway: Start, chat: Make, image_part: Make
) -> None:
    passed_on = []

    async def answer(request: Request) -> Response:
        passed_on.append(request.headers["traceparent"])
        message = {"role": "assistant", "content": MARK}
        usage = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
        return JSONResponse({"choices": [{"index": 0, "message": message}], "usage": usage})

    cued_engine.answer = answer
    gateway = await start_gateway()
    content = [image_part(32, 32), {"type": "text", "text": MARK}]
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-mark": MARK}

    response = await gateway.post(CHAT, json=chat(content), headers=headers)

    assert response.status_code == 200
    spans = await wait_for_spans(receiver, 5)
    request = spans.pop("chat tiny")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert passed_on == [f"00-{TRACE}-{request.span_id.hex()}-01"]
    assert attributes(request) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": int(response.headers["x-laid-prompt-tokens"]),
        "gen_ai.usage.output_tokens": 3,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": CHAT,
        "laid.image_tokens": 4,
        "laid.images": 1,
        "laid.request_id": response.headers["x-request-id"],
    }
    assert set(spans) == {"read", "check", "queue", "answer"}
    assert {span.parent_span_id for span in spans.values()} == {request.span_id}
    for span in spans.values():
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert MARK.encode() not in b"".join(receiver.bodies)


async def test_a_refusal_is_an_error_with_its_reason(receiver: Receiver, start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway()

    await gateway.post(CHAT, json=chat(model=MARK), headers={"traceparent": MARK, "tracestate": MARK * 1000})
    await gateway.get("/health")

    span = (await wait_for_spans(receiver, 3))["chat tiny"]
    assert attributes(span)["error.type"] == "model_not_found"
    assert attributes(span)["http.response.status_code"] == 404
    assert span.parent_span_id == b""
    assert len(receiver.spans()) == 3
    assert MARK.encode() not in b"".join(receiver.bodies)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
    ],
    ids=["nothing", "a name alone", "empty", "disabled"],
)
def test_without_an_endpoint_there_are_no_traces(environment: dict[str, str]) -> None:
    assert make_tracing("tiny", environment) is None


PROGRAM = """
import importlib, pkgutil, sys
sys.modules["opentelemetry"] = None  # as where it is not installed
import server
from server.telemetry.tracing import make_tracing
for module in pkgutil.walk_packages(server.__path__, "server."):
    importlib.import_module(module.name)
print(make_tracing("tiny", {}))
try:
    make_tracing("tiny", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
except ValueError as error:
    print(error)
"""


def test_all_but_traces_does_without_opentelemetry() -> None:
    lines = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).splitlines()

    assert lines[0] == "None"
    assert "pip install 'laid[tracing]'" in lines[1]
