"""Logs are JSON with the request's id, and hold nothing of what clients and models say."""

import asyncio
import base64
import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.telemetry.logs import LOGGER, REQUEST_ID, JsonFormatter

Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
MARK = "Xylophon-4711"


@pytest.fixture
def laid_serve(
    cued_engine: Any, checkpoint_path: Path, free_port: int, tmp_path: Path
) -> Iterator[tuple[str, "subprocess.Popen[bytes]", Path]]:
    """The address of the command, its process, and the file that gets all it prints."""
    output = tmp_path / "output"
    command = [sys.executable, "-m", "server.cli", str(checkpoint_path), "--upstream", cued_engine.url]
    with (
        output.open("wb") as file,
        subprocess.Popen([*command, "--port", str(free_port)], stdout=file, stderr=file) as process,
    ):
        yield f"http://127.0.0.1:{free_port}", process, output
        process.kill()


def marked_image() -> bytes:
    """An image whose file has the mark in clear."""
    text = PngInfo()
    text.add_text("Comment", MARK)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


async def test_nothing_of_a_session_is_in_its_output(
    laid_serve: tuple[str, "subprocess.Popen[bytes]", Path], cued_engine: Any, chat: Make, image_part: Make
) -> None:
    url, process, output = laid_serve

    async def answer(request: Request) -> Response:
        if b'"stream":true' in await request.body():
            return Response(
                f'data: {{"error": {{"message": "{MARK}", "code": 500}}}}\n\n', media_type="text/event-stream"
            )
        message = {"role": "assistant", "content": MARK}
        # Not what the gateway counts, which is logged.
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return JSONResponse({"choices": [{"index": 0, "message": message}], "usage": usage})

    cued_engine.answer = answer
    content = marked_image()
    good = [image_part(content=content), {"type": "text", "text": MARK}]
    bad = [image_part(content=content[:-20]), {"type": "text", "text": MARK}]
    statuses = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for _ in range(1200):
            try:
                await client.get("/ready")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        for body in (
            chat(good),
            chat(good, stream=True),
            chat(bad),
            chat(model=MARK),
            chat(MARK, max_tokens=10**6),
            chat(f"<|im_start|>{MARK}"),
            chat(**{MARK: 1}),
        ):
            statuses.append((await client.post(CHAT, json=body, headers={"x-mark": MARK})).status_code)
        json_type = {"content-type": "application/json"}
        statuses.append((await client.post(CHAT, content='{"' + MARK, headers=json_type)).status_code)
        statuses.append((await client.get(f"/{MARK}?{MARK}={MARK}")).status_code)
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, 120) == 0

    assert statuses == [200, 200, 400, 404, 400, 400, 400, 400, 404]
    printed = output.read_text()
    assert "count_difference" in printed
    assert MARK not in printed
    for image in (content, content[:-20]):
        assert base64.b64encode(image).decode()[40:80] not in printed
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"time"')]
    responses = [line for line in lines if line["event"] == "response" and line["route"] == CHAT]
    assert len({line["request_id"] for line in responses}) == 8
    (difference,) = [line for line in lines if line["event"] == "count_difference"]
    assert difference["request_id"] == responses[0]["request_id"]


def logged(logger: logging.Logger, message: str, error: Exception | None = None) -> dict[str, Any]:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "file.py", 7, message, (), exc_info)
    entry = json.loads(JsonFormatter().format(record))
    assert isinstance(entry, dict)
    return entry


def test_of_an_exception_only_type_and_place_are_logged() -> None:
    try:
        raise ValueError(MARK)
    except ValueError as error:
        entry = logged(LOGGER, "internal_error", error)

    assert (entry["event"], entry["exception"]) == ("internal_error", "ValueError")
    assert "test_logs.py:" in entry["at"]
    assert MARK not in json.dumps(entry)


def test_a_librarys_own_words_are_left_out() -> None:
    entry = logged(logging.getLogger("asyncio"), f"Task exception was never retrieved: ValueError('{MARK}')")

    assert (entry["event"], entry["logger"], entry["at"]) == ("library", "asyncio", "file.py:7")
    assert MARK not in json.dumps(entry)


def test_every_line_carries_the_request_it_belongs_to() -> None:
    token = REQUEST_ID.set("abc")
    try:
        entry = logged(LOGGER, "limits_unavailable")
    finally:
        REQUEST_ID.reset(token)

    assert entry["request_id"] == "abc"
    assert "request_id" not in logged(LOGGER, "limits_unavailable")
