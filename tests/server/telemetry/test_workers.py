"""Two worker processes on one port show one set of metrics."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response

Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
PATIENCE_SECONDS = 120


@pytest.fixture
def workers(
    cued_engine: Any, checkpoint_path: Path, free_port: int, tmp_path: Path
) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process that supervises the two workers."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "server.app:create_app_from_environment"]
    # A worker that this test has stopped is not to be replaced for its silence.
    options = ["--workers", "2", "--port", str(free_port), "--timeout-worker-healthcheck", "3600"]
    environment = os.environ | {
        "LAID_CHECKPOINT": str(checkpoint_path),
        "LAID_UPSTREAM": cued_engine.url,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
    }
    with subprocess.Popen([*command, *options], env=environment) as process:
        try:
            yield f"http://127.0.0.1:{free_port}", psutil.Process(process.pid)
        finally:
            for worker in workers_of(psutil.Process(process.pid)):
                worker.resume()
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)


def workers_of(supervisor: psutil.Process) -> list[psutil.Process]:
    """The children that serve; one more tracks resources."""
    return [child for child in supervisor.children() if "spawn_main" in " ".join(child.cmdline())]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def stop(worker: psutil.Process) -> None:
    """Returns when it has really stopped, and so accepts nothing."""
    worker.suspend()

    async def has_stopped() -> bool:
        return worker.status() == psutil.STATUS_STOPPED

    await eventually(has_stopped)


async def request(url: str, method: str, path: str, **options: Any) -> httpx.Response:
    """Over a connection of its own, so that either worker may get it."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
        return await client.request(method, path, **options)


async def samples(url: str) -> dict[str, list[float]]:
    """All values of each name."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families((await request(url, "GET", "/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


async def test_two_workers_add_up_and_a_killed_one_leaves_its_counts(
    workers: tuple[str, psutil.Process], cued_engine: Any, chat: Make, tmp_path: Path
) -> None:
    url, supervisor = workers

    async def both_have_begun() -> bool:
        return len(list((tmp_path / "metrics").glob("counter_*.db"))) == 2

    async def answers() -> bool:
        try:
            return (await request(url, "GET", "/health")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(both_have_begun)
    await eventually(answers)
    first, second = workers_of(supervisor)

    # While one is stopped the other gets all that comes.
    for stopped, num_requests in ((first, 3), (second, 2)):
        await stop(stopped)
        for _ in range(num_requests):
            assert (await request(url, "POST", CHAT, json=chat())).status_code == 200
        stopped.resume()

    counts = await samples(url)
    assert counts["laid_prompt_tokens_count"] == [5]
    assert counts["laid_context_length_tokens"] == [2048]

    arrived = asyncio.Event()

    async def never(_: Request) -> Response:
        arrived.set()
        await asyncio.Event().wait()
        return Response()

    cued_engine.answer = never
    await stop(second)
    waiting = asyncio.create_task(request(url, "POST", CHAT, json=chat()))
    await asyncio.wait_for(arrived.wait(), PATIENCE_SECONDS)
    second.resume()
    assert (await samples(url))["laid_requests_in_flight"] == [1]

    first.kill()
    with pytest.raises(httpx.TransportError):
        await waiting

    async def is_forgotten() -> bool:
        return (await samples(url))["laid_requests_in_flight"] == [0]

    await eventually(is_forgotten)
    assert (await samples(url))["laid_prompt_tokens_count"] == [6]
