"""`GET /v1/models` and `/v1/models/{model}`."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from server.errors import GatewayError, Reason
from server.gateway import Gateway

MODELS = "/v1/models"


def model_routes(gateway: Gateway) -> APIRouter:
    """The list of the one model, and its card."""
    router = APIRouter()
    card = _model_card(gateway)

    @router.get(MODELS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get(MODELS + "/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        if model != card["id"]:
            raise GatewayError(404, Reason.MODEL_NOT_FOUND, f"The model {model[:128]!r} does not exist.", param="model")
        return card

    return router


def _model_card(gateway: Gateway) -> dict[str, Any]:
    window = gateway.checkpoint.effective_window
    return {
        "id": gateway.settings.model,
        "object": "model",
        "created": int((gateway.checkpoint.path / "config.json").stat().st_mtime),
        "owned_by": "laid",
        "family": gateway.checkpoint.model_type,
        "max_model_len": gateway.context_length,
        "effective_window": None if window is None else asdict(window),
    }
