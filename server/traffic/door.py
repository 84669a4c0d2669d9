"""What is asked of every request before its body is read."""

from starlette.requests import Request

from server.settings import Settings
from server.telemetry.metrics import Metrics
from server.traffic.caller import ANONYMOUS, Caller, Limits
from server.traffic.keys import Keys


class Door:
    """Knows the caller of each request."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
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
        self._keys = None if path is None else Keys(path, defaults=defaults, metrics=metrics)

    async def enter(self, request: Request) -> None:
        """Finds the caller, whom `caller_of` then gives to the route.

        Raises:
            UnknownKeyError: keys are asked for, and the request has none of them.
        """
        request.state.caller = self._identify(request)

    def _identify(self, request: Request) -> Caller:
        if self._keys is None:
            return self._anonymous
        return self._keys.identify(request.headers.get("authorization", ""))
