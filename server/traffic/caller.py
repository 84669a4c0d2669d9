"""Who sends a request."""

from dataclasses import dataclass

from starlette.requests import Request


@dataclass(frozen=True)
class Caller:
    """The owner of the key that a request carries; both names come from the keys file, never from a client."""

    name: str
    """The key's own name: limits are counted under it."""
    tenant: str
    """Whose files and cached images the key reaches: keys of one tenant share them, and nobody else does."""


ANONYMOUS = Caller(name="anonymous", tenant="anonymous")
"""Every client, where no keys are configured."""


def caller_of(request: Request) -> Caller:
    """The caller as the app identified it, before the route's own function was entered."""
    caller = request.state.caller
    assert isinstance(caller, Caller)  # noqa: S101 - every route that asks is behind the app's check
    return caller
