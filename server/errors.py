"""Errors in the form that OpenAI's clients understand, each with one bounded reason.

GatewayError            carries status, reason, message and the part of the request it is about
├── BadRequestError          400, a retry cannot help
├── UnknownKeyError          401, without a word of the key
├── RateLimitError           429, with Retry-After where waiting helps
├── EngineUnavailableError   503, with Retry-After
└── StoppingError            503, with Retry-After
"""

import math
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Every reason for which a request can fail: the `code` of the error and a label of the error metric."""

    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    UNKNOWN_PARAMETER = "unknown_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    MODEL_NOT_FOUND = "model_not_found"
    INVALID_API_KEY = "invalid_api_key"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    LIMITS_UNAVAILABLE = "limits_unavailable"
    QUEUE_FULL = "queue_full"
    MEMORY_FULL = "memory_full"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    EFFECTIVE_WINDOW_EXCEEDED = "effective_window_exceeded"
    TOO_MANY_TOKENS = "too_many_tokens"
    INVALID_IMAGE = "invalid_image"
    FILE_NOT_FOUND = "file_not_found"
    FILE_QUOTA_EXCEEDED = "file_quota_exceeded"
    TOO_MANY_IMAGES = "too_many_images"
    MEDIA_BUDGET_EXCEEDED = "media_budget_exceeded"
    RESERVED_TOKEN = "reserved_token"  # noqa: S105 - a reason, not a secret
    BODY_TOO_LARGE = "body_too_large"
    BODY_TIMEOUT = "body_timeout"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CLIENT_LEFT = "client_left"
    ENGINE_REFUSED = "engine_refused"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_FAILED = "engine_failed"
    STOPPING = "server_stopping"
    INTERNAL = "internal_error"


class GatewayError(Exception):
    """A request that ends in an error response, or in an error event once its stream has begun."""

    def __init__(
        self,
        status: int,
        reason: Reason,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.reason.value}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Says whether a retry can help; without it OpenAI's clients repeat 408, 409, 429 and 5xx, whole body."""
        if self.retry_after_seconds is not None:
            return {
                "x-should-retry": "true",
                "retry-after": str(math.ceil(self.retry_after_seconds)),
                "retry-after-ms": str(math.ceil(1000 * self.retry_after_seconds)),
            }
        return {"x-should-retry": "false"} if self.status < 500 else {}


class BadRequestError(GatewayError):
    """400: the request itself is wrong."""

    def __init__(self, reason: Reason, message: str, *, param: str | None = None) -> None:
        super().__init__(400, reason, message, param=param)


class UnknownKeyError(GatewayError):
    """401: no key, or none that is known; the same answer for both, so that nothing can be learnt from it."""

    def __init__(self) -> None:
        super().__init__(
            401,
            Reason.INVALID_API_KEY,
            "Incorrect API key provided. Expected the header Authorization: Bearer KEY with a key of this server.",
        )

    def headers(self) -> dict[str, str]:
        """Names the scheme, as HTTP asks of every 401."""
        return super().headers() | {"www-authenticate": "Bearer"}


class RateLimitError(GatewayError):
    """429: the caller asks for more than its key may use."""

    def __init__(self, message: str, *, retry_after_seconds: float | None) -> None:
        super().__init__(429, Reason.RATE_LIMIT_EXCEEDED, message, retry_after_seconds=retry_after_seconds)


class EngineUnavailableError(GatewayError):
    """503: the engine does not answer now, and may soon."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            503,
            Reason.ENGINE_UNAVAILABLE,
            "The engine is not answering; try again later.",
            retry_after_seconds=retry_after_seconds,
        )


class StoppingError(GatewayError):
    """503: this server is being stopped and waits no longer for what it has begun; another may take it at once."""

    def __init__(self) -> None:
        super().__init__(
            503,
            Reason.STOPPING,
            "The server was stopped before the answer was whole; send the request again.",
            retry_after_seconds=1,
        )
