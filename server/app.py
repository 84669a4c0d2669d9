"""The gateway as an ASGI app."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from server.error_handlers import add_error_handlers
from server.files.upkeep import kept_up
from server.gateway import make_gateway
from server.openapi import document
from server.requests.linger import Linger
from server.routes.chat import chat_routes
from server.routes.completions import completion_routes
from server.routes.files import file_routes
from server.routes.input_tokens import input_token_routes
from server.routes.models import model_routes
from server.routes.page import page_routes
from server.routes.responses import response_routes
from server.routes.status import status_routes
from server.settings import Settings, check_environment
from server.telemetry.logs import configure_logs
from server.telemetry.observe import Observe


def create_app(settings: Settings) -> FastAPI:
    """Builds the gateway for one checkpoint and the engines that serve it.

    Raises:
        CheckpointError: the checkpoint's tokens cannot be counted.
    """
    gateway = make_gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.engines.start()
        async with kept_up(gateway.files, gateway.metrics.sources, gateway.threads):
            yield
        await gateway.aclose()

    app = FastAPI(title="LAid gateway", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.gateway = gateway
    app.add_middleware(Observe, metrics=gateway.metrics, tracing=gateway.tracing)
    app.add_middleware(Linger, seconds=settings.linger_seconds)
    add_error_handlers(app)

    for make_routes in (chat_routes, completion_routes, response_routes, input_token_routes, file_routes, model_routes):
        app.include_router(make_routes(gateway), dependencies=[Depends(gateway.door.enter)])
    app.include_router(status_routes(gateway))
    document(app, settings)
    if settings.page:
        app.include_router(page_routes())
    return app


def create_app_from_environment() -> FastAPI:
    """Builds the gateway from `LAID_*` variables alone, for a server that starts it in several worker processes.

    `PROMETHEUS_MULTIPROC_DIR=/run/laid uvicorn --factory server.app:create_app_from_environment --workers 4`

    Raises:
        ValueError: a variable is no setting, or has no valid value; CheckpointError and KeysFileError are.
    """
    check_environment(os.environ)
    configure_logs()
    return create_app(Settings())
