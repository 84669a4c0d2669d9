"""Who sends a request, and how much of it they may send."""

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

Kind = Literal["requests", "tokens", "images"]
"""What is limited a minute."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one key may use; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt tokens, of text and images together; the answers' tokens are not counted."""
    images_per_minute: int | None = None
    concurrency: int | None = None
    """Requests at the same time."""

    def per_minute(self, kind: Kind) -> int | None:
        """The limit of one kind."""
        match kind:
            case "requests":
                return self.requests_per_minute
            case "tokens":
                return self.tokens_per_minute
            case "images":
                return self.images_per_minute


@dataclass(frozen=True)
class Caller:
    """The owner of the key that a request carries; all of it comes from the keys file, nothing from a client."""

    name: str
    """The key's own name: its limits are counted under it."""
    tenant: str
    """Whose files and cached images the key reaches: keys of one tenant share them, and nobody else does."""
    limits: Limits = Limits()


ANONYMOUS = Caller(name="anonymous", tenant="anonymous")
"""Every client, where no keys are configured."""


def caller_of(request: Request) -> Caller:
    """The caller as the app identified it, before the route's own function was entered."""
    caller = request.state.caller
    assert isinstance(caller, Caller)  # noqa: S101 - every route that asks is behind the app's check
    return caller
