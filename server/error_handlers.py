"""Every failure of the app in OpenAI's form."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.errors import GatewayError, Reason
from server.telemetry.logs import LOGGER


def add_error_handlers(app: FastAPI) -> None:
    """Registers the handlers for refusals, for unknown routes and methods, and for bugs."""

    def respond(request: Request, error: GatewayError, headers: dict[str, str]) -> Response:
        request.state.record.error = error.reason
        if error.status in (408, 413):
            # The rest of the body is not worth reading.
            headers = headers | {"connection": "close"}
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers() | headers)

    async def on_gateway_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)  # noqa: S101 - by registration
        return respond(request, error, {})

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - by registration
        reason = Reason.METHOD_NOT_ALLOWED if error.status_code == 405 else Reason.NOT_FOUND
        message = f"{request.method[:16]} {request.url.path[:128]}: {error.detail}."
        return respond(request, GatewayError(error.status_code, reason, message), dict(error.headers or {}))

    async def on_bug(request: Request, error: Exception) -> Response:
        LOGGER.error("internal_error", exc_info=error)
        failure = GatewayError(500, Reason.INTERNAL, "The gateway failed on this request.")
        # This handler alone stands outside of the middleware that adds the id.
        return respond(request, failure, {"x-request-id": request.state.request_id})

    app.add_exception_handler(GatewayError, on_gateway_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_bug)
