"""The gateway as an ASGI app: routes, and the objects behind them."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response

from server.admission import Admission, Admitted
from server.body import read_body
from server.checkpoint import Checkpoint, read_checkpoint
from server.error_handlers import add_error_handlers
from server.errors import EngineUnavailableError, GatewayError, Reason
from server.metrics import Metrics
from server.observe import Observe
from server.prompt_counter import PromptCounter
from server.relay import Exchange, Relay
from server.settings import Settings
from server.upstream import Upstream, make_client

CHAT, MODELS, HEALTH, READY, METRICS = "/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics"


def create_app(settings: Settings) -> FastAPI:
    """Builds the gateway for one checkpoint and one engine.

    Raises:
        CheckpointError: the checkpoint's tokens cannot be counted.
    """
    checkpoint = read_checkpoint(settings.checkpoint)
    context_length = settings.context_length or checkpoint.context_length
    metrics = Metrics(settings.model)
    client = make_client(settings)
    upstream = Upstream(settings, client)
    relay = Relay(settings=settings, upstream=upstream, metrics=metrics)
    admission = Admission(settings, PromptCounter(checkpoint), context_length=context_length)
    threads = ThreadPoolExecutor(settings.admission_threads, thread_name_prefix="admission")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()
        threads.shutdown()

    app = FastAPI(title="LAid gateway", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Observe, metrics=metrics, routes=(CHAT, MODELS, HEALTH, READY, METRICS))
    add_error_handlers(app, metrics)
    _add_status_routes(app, settings, upstream, metrics)
    _add_model_routes(app, _model_card(settings.model, context_length, checkpoint))

    @app.post(CHAT, response_class=Response)
    async def chat(request: Request) -> Response:
        body = await read_body(request, settings)
        started = time.perf_counter()
        admitted = await asyncio.get_running_loop().run_in_executor(threads, admission.admit, body)
        metrics.admission_seconds.observe(time.perf_counter() - started)
        headers = _observe_window(metrics, admitted, context_length, checkpoint)
        return Exchange(relay, admitted, window_headers=headers, started=started)

    return app


def _observe_window(
    metrics: Metrics, admitted: Admitted, context_length: int, checkpoint: Checkpoint
) -> dict[str, str]:
    """Counts a prompt against the windows, and says the same in the answer's headers."""
    count, window = admitted.count, checkpoint.effective_window
    use = count.prompt_tokens / context_length
    effective_use = count.prompt_tokens / window.tokens if window is not None and window.tokens > 0 else None
    metrics.observe_prompt(count, use, effective_use)
    return {
        "x-laid-prompt-tokens": str(count.prompt_tokens),
        "x-laid-image-tokens": str(count.total_image_tokens),
        "x-laid-window-use": f"{use:.3f}",
        "x-laid-effective-window-use": "unknown" if effective_use is None else f"{effective_use:.3f}",
    }


def _model_card(model: str, context_length: int, checkpoint: Checkpoint) -> dict[str, Any]:
    window = checkpoint.effective_window
    return {
        "id": model,
        "object": "model",
        "created": int((checkpoint.path / "config.json").stat().st_mtime),
        "owned_by": "laid",
        "max_model_len": context_length,
        "effective_window": None if window is None else asdict(window),
    }


def _add_model_routes(app: FastAPI, card: dict[str, Any]) -> None:
    @app.get(MODELS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get(MODELS + "/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        if model != card["id"]:
            raise GatewayError(404, Reason.MODEL_NOT_FOUND, f"The model {model[:128]!r} does not exist.", param="model")
        return card


def _add_status_routes(app: FastAPI, settings: Settings, upstream: Upstream, metrics: Metrics) -> None:
    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(READY)
    async def ready() -> dict[str, str]:
        if not await upstream.is_ready():
            raise EngineUnavailableError(settings.retry_after_seconds)
        return {"status": "ready"}

    @app.get(METRICS, response_class=Response)
    async def exposition() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
