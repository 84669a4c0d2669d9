"""Reads a request's body under limits on size and time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from server.errors import GatewayError, Reason
from server.settings import Settings


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body.

    Raises:
        GatewayError: 413 at the first byte over the limit, or before any if the header announces it; 408 if it
            does not arrive in time; 415 if it is not plain JSON; 499 if the client leaves.
    """
    _check_type(request)
    limit = settings.max_body_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(f"{announced} bytes", limit)
    chunks = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(f"more than {limit} bytes", limit)
                chunks.append(chunk)
    except TimeoutError:
        raise GatewayError(
            408, Reason.BODY_TIMEOUT, f"The body did not arrive within {settings.body_timeout_seconds:g} s."
        ) from None
    except ClientDisconnect:
        raise GatewayError(499, Reason.CLIENT_LEFT, "The client closed the connection.") from None
    return b"".join(chunks)


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if kind != "application/json" or encoding != "identity":
        raise GatewayError(
            415,
            Reason.UNSUPPORTED_MEDIA_TYPE,
            "Expected a body with Content-Type: application/json and no Content-Encoding.",
        )


def _too_large(size: str, limit: int) -> GatewayError:
    return GatewayError(413, Reason.BODY_TOO_LARGE, f"The body has {size}, expected at most {limit}.")
