"""A tiny checkpoint, a gateway on a real socket, and engines behind it: the real one, and one that fails on cue."""

import asyncio
import base64
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rope_gain import wheel_guard
from server.app import create_app
from server.settings import Settings
from server.traffic.protocol import guarded_protocol

MODEL = "tiny"


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the real engine makes of a checkpoint of each family, by architecture."""
    wheel_guard.install()
    from tests.server.families.tiny_engines import start_tiny_engines

    return start_tiny_engines(tmp_path_factory.mktemp("tiny-engines"))


@pytest.fixture(scope="session")
def processor() -> Any:
    wheel_guard.install()
    from distill.miniature.processor import make_processor

    processor = make_processor()
    # Renders the same without tools, and with them in the form of Qwen3-VL's.
    processor.chat_template = processor.tokenizer.chat_template = (
        Path(__file__).parent / "chat_template.jinja"
    ).read_text()
    return processor


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory, processor: Any) -> Path:
    """A random float32 Qwen2.5-VL of 2,048 positions: its counts are real, its answers mean nothing."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token_id(token: str) -> int:
        return int(processor.tokenizer.convert_tokens_to_ids(token))

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(processor.tokenizer) + 63) // 64 * 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            # Heads of 32: vLLM's CPU kernels know none smaller.
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [0],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / MODEL
    Qwen2_5_VLForConditionalGeneration(config).float().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _picture(width: int, height: int, kind: str = "PNG", seed: int = 0) -> bytes:
    """An image with content, so that its compressed data has a middle to cut through."""
    noise = bytes((i * 2654435761 + seed * 97) >> 11 & 0xFF for i in range(3 * min(width * height, 4096)))
    pixels = (noise * (3 * width * height // len(noise) + 1))[: 3 * width * height]
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    return _picture


@pytest.fixture(scope="session")
def image_part() -> Callable[..., dict[str, Any]]:
    """Makes a content part from an image's bytes, or from the size of one to draw."""

    def make(*size: int, content: bytes | None = None, kind: str = "PNG", seed: int = 0) -> dict[str, Any]:
        content = _picture(*size, kind=kind, seed=seed) if content is None else content
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    return make


@pytest.fixture(scope="session")
def chat() -> Callable[..., dict[str, Any]]:
    """Makes a request of one user message with this content."""

    def make(content: Any = "hello", **parameters: Any) -> dict[str, Any]:
        return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4} | parameters

    return make


class _Server(uvicorn.Server):
    """In the test's own loop, where signals stay pytest's."""

    capture_signals = contextlib.nullcontext  # type: ignore[assignment]


@contextlib.asynccontextmanager
async def _serving(app: ASGIApp, *, port: int = 0, **options: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=2, **options)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.fixture(scope="session")
def serving() -> Callable[[ASGIApp], contextlib.AbstractAsyncContextManager[str]]:
    """Serves an app on a real socket, in the test's own loop; gives its URL."""
    return _serving


@dataclass
class CuedEngine:
    """Speaks the engine's wire format and does what a test tells it, which no real engine does on cue."""

    url: str = ""
    answer: Callable[[Request], Awaitable[Response]] | None = None
    healthy: bool = True
    model: str = MODEL
    context_length: int = 2048
    bodies: list[bytes] = field(default_factory=list)
    stop: Callable[[], Awaitable[None]] | None = None
    """Ends it before the test ends."""

    async def chat(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        if self.answer is not None:
            return await self.answer(request)
        usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
        message = {"role": "assistant", "content": "hi"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "chatcmpl-1", "model": MODEL, "choices": [choice], "usage": usage})

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.model, "max_model_len": self.context_length}]})

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.chat, methods=["POST"]),
            ]
        )


@pytest.fixture(scope="session")
def engine_that() -> Callable[[Callable[[Request], Awaitable[Response]]], ASGIApp]:
    """Makes an engine that answers every request so."""
    return lambda answer: CuedEngine(answer=answer).app()


@pytest.fixture
async def start_cued_engine() -> AsyncIterator[Callable[..., Awaitable[CuedEngine]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(port: int = 0) -> CuedEngine:
            engine = CuedEngine()
            serving = await stack.enter_async_context(contextlib.AsyncExitStack())
            engine.url = await serving.enter_async_context(_serving(engine.app(), port=port))
            engine.stop = serving.aclose
            return engine

        yield start


@pytest.fixture
async def cued_engine(start_cued_engine: Callable[[], Awaitable[CuedEngine]]) -> CuedEngine:
    return await start_cued_engine()


@pytest.fixture
def make_settings(checkpoint_path: Path, tmp_path: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        defaults = {
            "checkpoint": checkpoint_path,
            "model": MODEL,
            "files_folder": tmp_path / "files",
            # An engine in a test's own busy process may be slow to say that it is well.
            "health_timeout_seconds": 600.0,
        }
        return Settings(**(defaults | changes))

    return make


@pytest.fixture
async def start_gateway(
    cued_engine: CuedEngine, make_settings: Callable[..., Settings]
) -> AsyncIterator[Callable[..., Awaitable[httpx.AsyncClient]]]:
    """Starts a gateway on a real socket, by default before the cued engine, and gives a client for it."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes: Any) -> httpx.AsyncClient:
            settings = make_settings(**({"upstream": cued_engine.url} | changes))
            url = await stack.enter_async_context(_serving(create_app(settings), http=guarded_protocol(settings)))
            return await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=120))

        yield start


@dataclass(frozen=True)
class Served:
    """A running `laid-serve` with the real engine."""

    url: str
    engine_url: str
    pid: int
    output: str
    start_seconds: float


def _wait_for_line(process: subprocess.Popen[str], pattern: str) -> str:
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"laid-serve ended with {process.wait()}:\n{output}")


@contextlib.contextmanager
def _laid_serve(checkpoint_path: Path, **settings: str) -> Iterator[Served]:
    """The command with the real engine; its clean end is checked."""
    started = time.monotonic()
    command = [sys.executable, "-m", "server.cli", str(checkpoint_path), "--port", str(_free_port())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"} | settings
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        engine_pids = []
        try:
            output = _wait_for_line(process, "Ctrl-C ends it")
            url = re.search(r"Base URL: (\S+)/v1", output)
            engine_pids = _children(process.pid)
            arguments = Path(f"/proc/{engine_pids[0]}/cmdline").read_text().split("\0")
            engine_url = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
            assert url is not None
            yield Served(url[1], engine_url, process.pid, output, time.monotonic() - started)
        finally:
            engine_pids += _children(process.pid)
            process.send_signal(signal.SIGINT)
            status = process.wait(120)
        assert status == 0
        for pid in engine_pids:
            assert subprocess.run(["pgrep", "-g", str(pid)], check=False).returncode == 1, "an orphan is left"


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture(scope="session")
def served(checkpoint_path: Path) -> Iterator[Served]:
    """The one start of the real engine that tests share."""
    with _laid_serve(checkpoint_path) as served:
        yield served


@pytest.fixture
def served_to_be_killed(checkpoint_path: Path) -> Iterator[Served]:
    """Another start, which takes its time, for a test that kills the engine."""
    with _laid_serve(checkpoint_path, LAID_ENGINE_RESTART_SECONDS="0.1") as served:
        yield served


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return _free_port()
