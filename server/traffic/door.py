"""What is asked of every request before its body is read."""

from starlette.requests import Request

from server.errors import GatewayError, Reason
from server.settings import Settings, is_loopback
from server.telemetry.metrics import Metrics
from server.traffic.caller import ANONYMOUS, Caller, Limits
from server.traffic.keys import Keys
from server.traffic.limiter import Limiter


class Door:
    """Knows the caller of each request, and counts it."""

    def __init__(self, settings: Settings, metrics: Metrics, limiter: Limiter) -> None:
        """
        Raises:
            KeysFileError: the keys file cannot be read.
        """
        defaults = Limits(
            requests_per_minute=settings.key_requests_per_minute,
            tokens_per_minute=settings.key_tokens_per_minute,
            images_per_minute=settings.key_images_per_minute,
            concurrency=settings.key_concurrency,
        )
        self._anonymous = Caller(ANONYMOUS.name, ANONYMOUS.tenant, defaults)
        path = settings.keys_file
        self._limiter = limiter
        self._keys = None if path is None else Keys(path, defaults=defaults, metrics=metrics)

    async def enter(self, request: Request) -> None:
        """Finds the caller, whom `caller_of` then gives to the route; a POST counts as one of its requests.

        Raises:
            GatewayError: 401 without a key that is known; 429 over the requests a minute.
        """
        caller = request.state.caller = self._identify(request)
        if request.method == "POST":
            await self._limiter.spend(caller, {"requests": 1}, request.state.record.headers)

    def _identify(self, request: Request) -> Caller:
        if self._keys is None:
            _check_is_local(request)
            return self._anonymous
        return self._keys.identify(request.headers.get("authorization", ""))


def _check_is_local(request: Request) -> None:
    """Whoever started the server may have told it another address than the settings have."""
    server = request.scope["server"]
    if server is not None and server[1] is not None and not is_loopback(server[0]):
        raise GatewayError(
            401, Reason.INVALID_API_KEY, "This server has no keys (LAID_KEYS_FILE), so it answers on loopback only."
        )
