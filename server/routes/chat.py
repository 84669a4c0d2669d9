"""`POST /v1/chat/completions`."""

from fastapi import APIRouter, Request, Response

from server.exchange import Exchange
from server.gateway import Gateway
from server.requests.body import read_body
from server.requests.chat import parse_chat
from server.routes.direct import DirectRoute
from server.traffic.caller import caller_of

CHAT = "/v1/chat/completions"


def chat_routes(gateway: Gateway) -> APIRouter:
    """The one route."""
    router = APIRouter(route_class=DirectRoute)

    @router.post(CHAT, response_class=Response, response_model=None)
    async def chat(request: Request) -> Exchange:
        body = await read_body(request, gateway.settings, gateway.memory)
        return Exchange(gateway, caller_of(request), body, parse_chat)

    return router
