"""`POST /v1/responses`."""

from fastapi import APIRouter, Request, Response

from server.exchange import Exchange
from server.gateway import Gateway
from server.requests.body import read_body
from server.responses.request import parse_responses
from server.routes.direct import DirectRoute
from server.traffic.caller import caller_of

RESPONSES = "/v1/responses"


def response_routes(gateway: Gateway) -> APIRouter:
    """The one route."""
    router = APIRouter(route_class=DirectRoute)

    @router.post(RESPONSES, response_class=Response, response_model=None)
    async def responses(request: Request) -> Exchange:
        body = await read_body(request, gateway.settings, gateway.memory)
        return Exchange(gateway, caller_of(request), body, parse_responses)

    return router
