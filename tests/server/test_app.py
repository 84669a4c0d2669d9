"""The routes and the error form, on a real socket."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL.PngImagePlugin import PngImageFile

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def assert_openai_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-should-retry"] == "false"
    assert len(response.headers["x-request-id"]) == 32
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")


async def test_health_is_the_gateways_and_ready_the_engines(cued_engine: Any, start_gateway: Start) -> None:
    gateway = await start_gateway(health_interval_seconds=0.01, health_fall=1)
    assert (await gateway.get("/health")).status_code == 200
    assert (await gateway.get("/ready")).json() == {"status": "ready"}

    cued_engine.healthy = False

    deadline = time.monotonic() + 60
    while (response := await gateway.get("/ready")).status_code == 200:
        assert time.monotonic() < deadline
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert (await gateway.get("/health")).status_code == 200


async def test_models_tell_both_windows(
    cued_engine: Any, start_gateway: Start, checkpoint_path: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkpoint_path, tmp_path / "student"))
    numbers = {"images": 8.0, "images_low": 7.0, "images_high": 9.0, "tokens": 22.0, "tokens_low": 20.0}
    window = {"threshold": 0.6, "kind": "absolute", "tokens_high": 30.0, "censored": False, **numbers}
    measured = {"task": "miniature/open", "threshold": 0.6, "confidence": 0.95, "windows": [window]}
    (path / "laid.json").write_text(json.dumps({"effective_window": measured}))
    cued_engine.model, cued_engine.context_length = "student", 1024
    gateway = await start_gateway(checkpoint=path, model="student", context_length=1024)

    (card,) = (await gateway.get("/v1/models")).json()["data"]

    assert (card["id"], card["object"], card["max_model_len"]) == ("student", "model", 1024)
    assert card["effective_window"]["tokens"] == 22.0
    assert card["effective_window"]["task"] == "miniature/open"
    assert (await gateway.get("/v1/models/student")).json() == card
    body = {"model": "student", "messages": [{"role": "user", "content": "hello"}]}
    headers = (await gateway.post(CHAT, json=body)).headers
    assert headers["x-laid-effective-window-use"] == "0.500"
    assert headers["x-laid-window-use"] == "0.011"


async def test_a_stock_checkpoints_effective_window_is_unknown(start_gateway: Start) -> None:
    gateway = await start_gateway()

    assert (await gateway.get("/v1/models")).json()["data"][0]["effective_window"] is None


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/tokenize", 404, "not_found"),
        ("POST", "/invocations", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
async def test_wrong_routes_and_methods(start_gateway: Start, method: str, path: str, status: int, code: str) -> None:
    gateway = await start_gateway()

    response = await gateway.request(method, path)

    assert_openai_error(response, status, code)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "invalid_json"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b"{}", JSON | {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b" " * 2000, JSON, 413, "body_too_large"),
        (b'{"model":"other"}', JSON, 404, "model_not_found"),
    ],
)
async def test_bodies_refused(
    cued_engine: Any, start_gateway: Start, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    gateway = await start_gateway(max_body_bytes=1000)

    assert_openai_error(await gateway.post(CHAT, content=content, headers=headers), status, code)
    assert cued_engine.bodies == []


async def test_a_body_of_unknown_length_is_refused_at_the_limit(start_gateway: Start) -> None:
    gateway = await start_gateway(max_body_bytes=1000, linger_seconds=0.1)
    port = gateway.base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    # 1,001 bytes and no end: the answer cannot wait for one.
    writer.write(head.encode() + b"3e9\r\n" + b" " * 1001 + b"\r\n")

    answer = await asyncio.wait_for(reader.read(), 60)

    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


async def test_a_body_that_does_not_arrive_is_408(start_gateway: Start) -> None:
    gateway = await start_gateway(body_timeout_seconds=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{".encode()
    )

    answer = await asyncio.wait_for(reader.read(), 60)

    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer


async def test_metrics_show_exactly_the_requests(start_gateway: Start, chat: Make, image_part: Make) -> None:
    gateway = await start_gateway()
    for num_images in (0, 1, 20):
        response = await gateway.post(CHAT, json=chat([image_part(32, 32)] * num_images))
        assert response.status_code == 200
    await gateway.post(CHAT, json=chat(model="other"))
    await gateway.get("/any/path")

    response = await gateway.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    for name, value in {
        'laid_request_images_count{model="tiny"}': 3,
        'laid_request_images_sum{model="tiny"}': 21,
        'laid_request_images_bucket{le="1.0",model="tiny"}': 2,
        'laid_image_tokens_sum{model="tiny"}': 84,
        'laid_prompt_tokens_count{model="tiny"}': 3,
        'laid_prompt_tokens_sum{model="tiny"}': 3 * 8 + 21 * 6,
        'laid_text_tokens_sum{model="tiny"}': 3 * 8 + 21 * 2,
        'laid_request_image_pixels_sum{model="tiny"}': 21 * 32 * 32,
        'laid_request_duration_seconds_count{context_class="<8k",model="tiny"}': 3,
        'laid_request_phase_seconds_count{model="tiny",phase="answer"}': 3,
        'laid_request_phase_seconds_count{model="tiny",phase="read"}': 4,
        'laid_tokens_in_flight{model="tiny"}': 0,
        'laid_context_length_tokens{model="tiny"}': 2048,
        'laid_window_use_ratio_count{model="tiny"}': 3,
        'laid_effective_window_use_ratio_count{model="tiny"}': 0,
        'laid_requests_total{route="/v1/chat/completions",status="200"}': 3,
        'laid_requests_total{route="/v1/chat/completions",status="404"}': 1,
        'laid_requests_total{route="other",status="404"}': 1,
        'laid_errors_total{context_class="uncounted",kind="request",reason="model_not_found"}': 1,
        'laid_errors_total{context_class="uncounted",kind="request",reason="invalid_image"}': 0,
    }.items():
        assert float(samples[name]) == value, name


async def test_metrics_of_two_apps_do_not_mix(start_gateway: Start, chat: Make) -> None:
    first, second = await start_gateway(), await start_gateway()
    await first.post(CHAT, json=chat())

    assert 'laid_prompt_tokens_count{model="tiny"} 1.0' in (await first.get("/metrics")).text
    assert 'laid_prompt_tokens_count{model="tiny"} 0.0' in (await second.get("/metrics")).text


async def test_health_answers_while_images_are_decoded(
    start_gateway: Start, chat: Make, image_part: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()
    begun, has_answered = threading.Event(), threading.Event()
    load = PngImageFile.load

    def slow_load(image: PngImageFile) -> Any:
        begun.set()
        # Were this the event loop's own thread, /health could not answer before the time is over.
        assert has_answered.wait(60)
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", slow_load)
    post = asyncio.create_task(gateway.post(CHAT, json=chat([image_part(32, 32)])))
    assert await asyncio.to_thread(begun.wait, 60)

    assert (await gateway.get("/health")).status_code == 200
    has_answered.set()

    assert (await post).status_code == 200


async def test_logs_are_json_without_prompts(
    start_gateway: Start, chat: Make, caplog: pytest.LogCaptureFixture
) -> None:
    from server.telemetry.logs import JsonFormatter

    gateway = await start_gateway()
    with caplog.at_level("INFO", logger="laid.server"):
        await gateway.post(CHAT, json=chat("a secret prompt"))
        await gateway.get("/a-secret-path")

    entries = [JsonFormatter().format(record) for record in caplog.records if record.message == "response"]
    assert [json.loads(entry)["route"] for entry in entries] == [CHAT, "other"]
    assert [json.loads(entry)["status"] for entry in entries] == [200, 404]
    assert "secret" not in "".join(entries)
