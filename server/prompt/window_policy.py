"""What is done with a prompt beyond the effective window, and who decides it."""

from enum import StrEnum

from server.errors import BadRequestError, Reason

POLICY_HEADER = "x-laid-window-policy"


class WindowPolicy(StrEnum):
    """What is done with a prompt beyond the effective window."""

    WARN = "warn"
    """It is answered, with a header that warns."""
    REJECT = "reject"
    """It is refused."""
    FIT = "fit"
    """The images of the last turn are scaled down just enough; where that is not enough, it is refused."""


def choose_policy(asked: str | None, default: WindowPolicy) -> WindowPolicy:
    """The policy of a request whose header says `asked`; a server that refuses or fits cannot be told to let pass.

    Raises:
        BadRequestError: no such policy, or `warn` where the server's own is stricter.
    """
    if asked is None:
        return default
    allowed = [policy.value for policy in WindowPolicy if policy in (WindowPolicy.REJECT, WindowPolicy.FIT, default)]
    if asked not in allowed:
        raise BadRequestError(
            Reason.INVALID_REQUEST,
            f"{POLICY_HEADER}: {asked[:32]!r}, expected {' or '.join(allowed)}.",
            param=POLICY_HEADER,
        )
    return WindowPolicy(asked)
