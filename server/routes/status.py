"""`GET /health`, `/ready` and `/metrics`."""

from fastapi import APIRouter, Depends, Response

from server.gateway import Gateway

HEALTH, READY, METRICS = "/health", "/ready", "/metrics"


def status_routes(gateway: Gateway) -> APIRouter:
    """Whether the gateway lives, whether it can serve, and what it counted."""
    router = APIRouter()

    @router.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(READY)
    async def ready() -> dict[str, str]:
        if gateway.stopping.is_set() or not gateway.engines.is_ready:
            raise gateway.engines.unavailable()
        return {"status": "ready"}

    guards = [Depends(gateway.door.enter)] if gateway.settings.metrics_need_key else []

    @router.get(METRICS, response_class=Response, dependencies=guards)
    def exposition() -> Response:
        # In a worker thread: formatting takes more milliseconds than the event loop may wait.
        return Response(gateway.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
