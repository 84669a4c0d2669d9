"""An engine that ends by itself: a real one once, and one that is soon up and soon down for the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.engines.engine import Engine, EngineError
from server.engines.supervisor import Supervisor

Make = Callable[..., Any]
PATIENCE_SECONDS = 300

# Says that it is well, answers anything, and ends as soon as it has answered a request.
SHORT_LIVED = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def do_GET(self):
        self.answer()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer()
        self.wfile.flush()
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(9)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STILLBORN = "import sys; sys.exit('no weights')"


@pytest.fixture
def start_with(tmp_path: Path, free_port: int) -> Callable[[list[str]], Callable[[], Engine]]:
    """Makes what starts an engine: the programs one after another, and the last one for ever."""

    def make(programs: list[str]) -> Callable[[], Engine]:
        def start() -> Engine:
            program = programs.pop(0) if len(programs) > 1 else programs[0]
            command = [sys.executable, "-c", program, str(free_port)]
            return Engine(command, dict(os.environ), port=free_port, log_path=tmp_path / "engine.log")

        return start

    return make


async def ends(supervisor: Supervisor) -> tuple[list[float], str]:
    """When it was expected back, each time that it ended, and the last words."""
    expected: list[float] = []
    try:
        await supervisor.bring_up()
        with pytest.raises(EngineError) as raised:
            await supervisor.keep_up(expected.append)
    finally:
        supervisor.engine.stop()
    return expected, str(raised.value)


async def test_restarts_are_bounded_and_wait_longer_each_time(start_with: Make, make_settings: Make) -> None:
    settings = make_settings(max_engine_restarts=3, engine_restart_seconds=0.01)
    supervisor = Supervisor(start_with([SHORT_LIVED]), settings, start_timeout_seconds=PATIENCE_SECONDS)

    expected, last_words = await ends(supervisor)

    assert len(expected) == 3
    assert last_words.startswith("restarted 3 times in a row, the engine ended with status 9.")
    assert last_words.endswith("out of memory")


async def test_one_that_does_not_come_up_again_is_tried_again_too(start_with: Make, make_settings: Make) -> None:
    settings = make_settings(max_engine_restarts=3, engine_restart_seconds=0.01)
    supervisor = Supervisor(
        start_with([SHORT_LIVED, STILLBORN, SHORT_LIVED, STILLBORN]), settings, start_timeout_seconds=PATIENCE_SECONDS
    )

    expected, last_words = await ends(supervisor)

    assert len(expected) == 3
    assert "status 1" in last_words
    assert last_words.endswith("no weights")


async def test_a_steady_run_starts_the_count_again(start_with: Make, make_settings: Make) -> None:
    # Whatever it has run for is long enough to be steady: only the second in a row that does not come up is in vain.
    settings = make_settings(max_engine_restarts=1, engine_restart_seconds=0.01, engine_steady_seconds=1e-9)
    supervisor = Supervisor(
        start_with([*[SHORT_LIVED] * 4, STILLBORN]), settings, start_timeout_seconds=PATIENCE_SECONDS
    )

    expected, _ = await ends(supervisor)

    assert len(expected) == 4


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: str) -> list[str]:
    return subprocess.check_output(["pgrep", "-P", pid], text=True).split()


@pytest.mark.engine
def test_a_killed_engine_ends_its_streams_with_an_error_and_comes_back(served_to_be_killed: Any, chat: Make) -> None:
    gateway = httpx.Client(base_url=served_to_be_killed.url, timeout=PATIENCE_SECONDS)
    (leash_pid,) = children(str(served_to_be_killed.pid))
    (engine_pid,) = children(leash_pid)
    endless = chat("hello", max_tokens=2000, min_tokens=2000, stream=True)
    with gateway, gateway.stream("POST", "/v1/chat/completions", json=endless) as response:
        chunks = response.iter_raw()
        next(chunks)

        os.kill(int(engine_pid), signal.SIGKILL)

        events = b"".join(chunks).decode().strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_failed"

        wait_until(lambda: gateway.get("/ready").status_code == 503)
        refused = gateway.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        # As long as the start took, or what is left of that.
        assert 1 <= int(refused.headers["retry-after"]) <= served_to_be_killed.start_seconds + 5
        assert refused.headers["x-should-retry"] == "true"

        wait_until(lambda: gateway.get("/ready").status_code == 200)
        assert gateway.post("/v1/chat/completions", json=chat()).status_code == 200
        assert "laid_engine_restarts_total" in gateway.get("/metrics").text
