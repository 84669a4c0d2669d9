"""The command as a user runs it, before an engine that already runs; `test_engine.py` starts a real one."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.cli import main
from server.engines.engine import Engine, EngineError


@contextmanager
def laid_serve(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "server.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    pytest.fail(f"ended with {process.wait()}:\n{output}\n{process.stderr and process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_serves_before_a_running_engine_until_told_to_stop(
    cued_engine: Any, checkpoint_path: Path, free_port: int, number: signal.Signals
) -> None:
    engines = ("--upstream", "http://127.0.0.1:1", "--upstream", cued_engine.url)  # one of them is enough
    arguments = (str(checkpoint_path), *engines, "--port", str(free_port))
    with laid_serve(*arguments) as process:
        output = await asyncio.to_thread(read_until, process, "Ctrl-C ends it")
        assert f"http://127.0.0.1:{free_port}/v1 " in output
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}") as client:
            assert (await client.get("/ready")).status_code == 200
        process.send_signal(number)

        assert await asyncio.to_thread(process.wait, 120) == 0


async def test_told_what_the_engines_serve_it_starts_before_them(
    cued_engine: Any, checkpoint_path: Path, free_port: int, chat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cued_engine.model = "not yet"
    monkeypatch.setenv("LAID_CONTEXT_LENGTH", "2048")
    arguments = (str(checkpoint_path), "--upstream", cued_engine.url, "--model", "tiny", "--port", str(free_port))
    with laid_serve(*arguments) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as client:

            async def answers(path: str, status: int) -> bool:
                try:
                    return (await client.get(path)).status_code == status
                except httpx.TransportError:
                    return False

            await _until(lambda: answers("/health", 200))
            assert await answers("/ready", 503)
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 503
            assert (await client.post("/v1/chat/completions/input_tokens", json=chat())).json()["fits"]

            cued_engine.model = "tiny"

            await _until(lambda: answers("/ready", 200))
        await asyncio.to_thread(read_until, process, "Ctrl-C ends it")


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
async def draining(
    cued_engine: Any, checkpoint_path: Path, free_port: int, chat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """Sends SIGTERM to a gateway in mid-stream, and gives what is needed to see what becomes of it."""
    go_on = asyncio.Event()

    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b'data: {"choices":[]}\n\n'
            await go_on.wait()
            yield b"data: [DONE]\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    cued_engine.answer = answer
    monkeypatch.setenv("LAID_DRAIN_SECONDS", "3600")
    arguments = (str(checkpoint_path), "--upstream", cued_engine.url, "--port", str(free_port), "--model", "tiny")
    with laid_serve(*arguments) as process:
        await asyncio.to_thread(read_until, process, "Ctrl-C ends it")
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response,
        ):
            chunks = response.aiter_raw()
            await anext(chunks)
            process.send_signal(signal.SIGTERM)
            yield process, client, chunks, go_on
        go_on.set()


async def until_closed(client: httpx.AsyncClient) -> None:
    """The signal was heard: nobody listens any more."""

    async def is_closed() -> bool:
        try:
            await client.get("/health")
        except httpx.TransportError:
            return True
        return False

    await _until(is_closed)


async def test_sigterm_lets_streams_end_and_takes_no_new_ones(draining: Any) -> None:
    process, client, chunks, go_on = draining
    await until_closed(client)
    assert process.poll() is None

    go_on.set()

    assert [chunk async for chunk in chunks][-1].endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(process.wait, 120) == 0


async def test_a_second_sigterm_ends_at_once_and_says_so_in_the_stream(draining: Any) -> None:
    process, client, chunks, _ = draining
    await until_closed(client)

    process.send_signal(signal.SIGTERM)

    event = b"".join([chunk async for chunk in chunks])
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "server_stopping"
    assert await asyncio.to_thread(process.wait, 120) == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_what_outlasts_the_drain_is_told_so(
    cued_engine: Any,
    checkpoint_path: Path,
    free_port: int,
    chat: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    has_begun = asyncio.Event()

    async def answer(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b'data: {"choices":[]}\n\n'
            has_begun.set()
            await asyncio.Event().wait()

        return StreamingResponse(body(), media_type="text/event-stream")

    cued_engine.answer = answer
    monkeypatch.setenv("LAID_DRAIN_SECONDS", "1")
    arguments = (str(checkpoint_path), "--upstream", cued_engine.url, "--port", str(free_port), "--model", "tiny")
    with laid_serve(*arguments) as process:
        await asyncio.to_thread(read_until, process, "Ctrl-C ends it")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat(stream=stream)))
            await has_begun.wait()
            process.send_signal(signal.SIGTERM)
            response = await asking

        assert response.status_code == (200 if stream else 503)
        error = json.loads(response.text.rpartition("data: ")[2])["error"]
        assert error["code"] == "server_stopping"
        assert response.headers.get("x-should-retry") == (None if stream else "true")
        assert await asyncio.to_thread(process.wait, 120) == 0


async def test_ready_says_no_before_the_door_closes(
    cued_engine: Any, checkpoint_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAID_DRAIN_NOTICE_SECONDS", "3600")
    arguments = (str(checkpoint_path), "--upstream", cued_engine.url, "--port", str(free_port))
    with laid_serve(*arguments) as process:
        await asyncio.to_thread(read_until, process, "Ctrl-C ends it")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as client:
            process.send_signal(signal.SIGTERM)

            async def is_leaving() -> bool:
                return (await client.get("/ready")).status_code == 503

            await _until(is_leaving)
            assert (await client.get("/health")).status_code == 200
        process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, 120) == 0


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    text = capsys.readouterr().out
    assert all(word in text for word in ("examples:", "--upstream", "LAID_MAX_IMAGES", "exit status"))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["/nowhere"], 2, "no such folder"),
        (["{checkpoint}", "--port", "{taken}"], 2, "choose another with --port"),
        (["{checkpoint}", "--port", "0"], 2, "greater than or equal to 1"),
        (["{checkpoint}", "--port", "{free}", "--upstream", "http://127.0.0.1:{free}"], 1, "no engine answers there"),
        (["{checkpoint}", "--port", "{free}", "--upstream", "{engine}", "--model", "other"], 1, "serves 'tiny'"),
    ],
    ids=["no folder", "port taken", "bad port", "no engine", "other model"],
)
async def test_what_cannot_work_ends_at_once_with_the_reason(
    cued_engine: Any,
    checkpoint_path: Path,
    free_port: int,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    taken = cued_engine.url.rsplit(":", 1)[1]
    known = {"checkpoint": checkpoint_path, "taken": taken, "free": free_port, "engine": cued_engine.url}

    with laid_serve(*(argument.format(**known) for argument in arguments)) as process:
        _, errors = await asyncio.to_thread(process.communicate, timeout=120)

    assert process.returncode == status
    assert words in errors
    assert "Traceback" not in errors


def test_an_unknown_setting_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAID_MAX_IMAGE", "5")

    assert main(["/nowhere"]) == 2
    assert "LAID_MAX_IMAGE: no such setting; did you mean LAID_MAX_IMAGES?" in capsys.readouterr().err


def start(tmp_path: Path, program: str) -> Engine:
    command = [sys.executable, "-c", program]
    return Engine(command, dict(os.environ), port=1, log_path=tmp_path / "engine.log")


async def test_an_engine_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    engine = start(tmp_path, "import sys; sys.exit('out of memory')")

    with pytest.raises(EngineError, match=r"(?s)ended with status 1.*out of memory"):
        await engine.wait_until_ready(timeout_seconds=60)


async def test_waiting_for_an_engine_has_an_end(tmp_path: Path) -> None:
    engine = start(tmp_path, "import time; time.sleep(600)")
    try:
        with pytest.raises(EngineError, match=r"not ready after 0\.5 s"):
            await engine.wait_until_ready(timeout_seconds=0.5)
    finally:
        engine.stop()


FAMILY = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '{child}']); time.sleep(600)"
# What holds the leash, the program, and its child.
LEASHED = 3
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def num_in_group(group: int) -> int:
    return len(subprocess.run(["pgrep", "-g", str(group)], capture_output=True, check=False).stdout.split())


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopping_ends_children_that_ignore_sigterm_too(tmp_path: Path) -> None:
    engine = start(tmp_path, FAMILY.format(child=STUBBORN))
    wait_for(lambda: num_in_group(engine.pid) == LEASHED)

    engine.stop()

    wait_for(lambda: num_in_group(engine.pid) == 0)


async def test_an_engine_that_is_killed_has_ended(tmp_path: Path) -> None:
    engine = start(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    with pytest.raises(EngineError, match="ended with status 137"):
        await engine.wait_until_ready(timeout_seconds=60)


def test_all_of_the_engine_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, time
from pathlib import Path
from server.engines.engine import Engine
command = {[sys.executable, "-c", FAMILY.format(child=STUBBORN)]!r}
engine = Engine(command, dict(os.environ), port=1, log_path=Path({str(tmp_path / "log")!r}))
print(engine.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine_pid = int(parent.stdout.readline())
        wait_for(lambda: num_in_group(engine_pid) == LEASHED)

        parent.kill()

    wait_for(lambda: num_in_group(engine_pid) == 0)


def test_a_public_address_without_keys_and_a_broken_keys_file_are_refused(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint_path), "--host", "0.0.0.0"]) == 2
    assert "set LAID_KEYS_FILE=keys.toml, or listen on 127.0.0.1" in capsys.readouterr().err

    monkeypatch.setenv("LAID_KEYS_FILE", str(tmp_path / "nowhere.toml"))
    assert main([str(checkpoint_path), "--host", "0.0.0.0"]) == 2
    assert "nowhere.toml: No such file or directory; make one with laid-keys" in capsys.readouterr().err
