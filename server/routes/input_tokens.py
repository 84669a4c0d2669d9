"""`POST /v1/responses/input_tokens` and `/v1/chat/completions/input_tokens`: the dry run."""

from fastapi import APIRouter, Request, Response

from server.dry_run import DryRun
from server.gateway import Gateway
from server.requests.admission import Parse
from server.requests.body import read_body
from server.requests.chat import parse_chat
from server.responses.request import parse_responses
from server.routes.chat import CHAT
from server.routes.direct import DirectRoute
from server.routes.responses import RESPONSES
from server.traffic.caller import caller_of

INPUT_TOKENS = f"{RESPONSES}/input_tokens"
CHAT_INPUT_TOKENS = f"{CHAT}/input_tokens"


def input_token_routes(gateway: Gateway) -> APIRouter:
    """The two routes."""
    router = APIRouter(route_class=DirectRoute)

    async def measure(request: Request, parse: Parse) -> DryRun:
        body = await read_body(request, gateway.settings, gateway.memory)
        return DryRun(gateway, caller_of(request), body, parse)

    @router.post(INPUT_TOKENS, response_class=Response, response_model=None)
    async def responses(request: Request) -> DryRun:
        return await measure(request, parse_responses)

    @router.post(CHAT_INPUT_TOKENS, response_class=Response, response_model=None)
    async def chat(request: Request) -> DryRun:
        return await measure(request, parse_chat)

    return router
