"""Routes for many requests a second."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """A documented route whose endpoint and dependencies take the request itself, and nothing else.

    FastAPI's own way to them, made for what they could take, costs as much as all of the gateway's checks of a short
    request.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[ASGIApp]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        steps = [step for dependency in self.dependencies if (step := dependency.dependency) is not None]

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            for step in steps:
                await step(request)
            answer = await endpoint(request)
            await answer(scope, receive, send)

        self.app = serve
