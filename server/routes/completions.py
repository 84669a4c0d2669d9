"""`POST /v1/completions`."""

from fastapi import APIRouter, Request, Response

from server.exchange import Exchange
from server.gateway import Gateway
from server.requests.body import read_body
from server.requests.completions import parse_completions
from server.routes.direct import DirectRoute
from server.traffic.caller import caller_of

COMPLETIONS = "/v1/completions"


def completion_routes(gateway: Gateway) -> APIRouter:
    """The one route."""
    router = APIRouter(route_class=DirectRoute)

    @router.post(COMPLETIONS, response_class=Response, response_model=None)
    async def completions(request: Request) -> Exchange:
        body = await read_body(request, gateway.settings, gateway.memory)
        return Exchange(gateway, caller_of(request), body, parse_completions)

    return router
