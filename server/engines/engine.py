"""Runs vLLM's OpenAI server as a child process of the gateway, on loopback."""

import asyncio
import base64
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from PIL import Image

from server.checkpoint import Checkpoint
from server.engines.command import engine_command, engine_environment

POLL_SECONDS = 0.25
GRACE_SECONDS = 10.0


class EngineError(RuntimeError):
    """The engine did not start or ended by itself; the message holds the end of its log."""


class Engine:
    """One vLLM server and every process it starts, in a process group of their own.

    Made in the main thread: the kernel ends the child with the thread that started it.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], *, port: int, log_path: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log_path = log_path
        leashed = [sys.executable, "-m", "server.engines.leash", str(os.getpid()), *command]
        with log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the gateway alone, which then ends the engine.
            self._process = subprocess.Popen(
                leashed, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Also the id of the process group."""
        return self._process.pid

    def check_alive(self) -> None:
        """Raises EngineError if the engine has ended."""
        if self._process.poll() is not None:
            raise self.last_words()

    def last_words(self) -> EngineError:
        """How an engine that has ended did so."""
        status = self._process.poll()
        return EngineError(f"the engine ended with status {status}. The end of its log:\n{self._log_end()}")

    async def wait_until_ready(self, *, timeout_seconds: float) -> None:
        """Waits for the engine's health check.

        Raises:
            EngineError: it ended, or took longer than `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                self.check_alive()
                try:
                    if (await client.get(f"{self.url}/health", timeout=5.0)).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(POLL_SECONDS)
        raise EngineError(
            f"the engine was not ready after {timeout_seconds:g} s. The end of its log:\n{self._log_end()}"
        )

    async def wait_until_ended(self) -> None:
        """Returns when the engine has ended by itself."""
        while self._process.poll() is None:  # noqa: ASYNC110 - a child's end sets no event
            await asyncio.sleep(POLL_SECONDS)

    def stop(self, *, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ends the engine and every process it started: SIGTERM, and SIGKILL for what is left after a grace."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_seconds)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._signal(signal.SIGKILL) and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(0.02)

    def _signal(self, number: signal.Signals) -> bool:
        """True if a process of the group is left to get the signal."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _log_end(self, num_lines: int = 20) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])


def start_engine(
    checkpoint: Checkpoint,
    *,
    model: str,
    max_images: int,
    port: int,
    extra_arguments: Sequence[str],
    log_path: Path,
) -> Engine:
    """Starts vLLM for a checkpoint; it is not ready yet.

    Args:
        port: on loopback.
        extra_arguments: appended to vLLM's command line, so that they win over the ones chosen here.
        log_path: gets all that the engine prints.
    """
    command = engine_command(
        checkpoint,
        model=model,
        max_images=max_images,
        host="127.0.0.1",
        port=port,
        extra_arguments=extra_arguments,
    )
    return Engine(command, engine_environment() | dict(os.environ), port=port, log_path=log_path)


async def warm_up(url: str, model: str, *, timeout_seconds: float) -> None:
    """Sends one request with an image: the first of each kind costs the engine seconds.

    Raises:
        EngineError: it was not answered.
    """
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(picture, "PNG")
    image_url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": "What is this?"}]
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": content}]}
    async with httpx.AsyncClient(trust_env=False, timeout=timeout_seconds) as client:
        try:
            response = await client.post(f"{url}/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            raise EngineError(f"the engine did not answer its first request: {error!r}") from error
    if response.status_code != 200:
        raise EngineError(f"the engine answered its first request with {response.status_code}: {response.text[:500]}")


async def read_served_model(url: str, *, timeout_seconds: float) -> tuple[str, int]:
    """The name and the context length (tokens) under which a running engine serves its model.

    Raises:
        EngineError: no engine answers at `url`.
    """
    async with httpx.AsyncClient(trust_env=False, timeout=timeout_seconds) as client:
        try:
            response = await client.get(f"{url.rstrip('/')}/v1/models")
            card = response.raise_for_status().json()["data"][0]
            return str(card["id"]), int(card["max_model_len"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise EngineError(f"{url}: no engine answers there with its models: {error!r}") from error


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
