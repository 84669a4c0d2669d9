"""What became of each request, as its client saw it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

CLIENT_LEFT = "client_left"
LEFT_STATUS = 499
"""Under which the gateway counts a client that left before any answer; nobody sees it."""


class Outcome(StrEnum):
    """Every end that a request can have."""

    ANSWERED = "answered"
    """Completely: a body of the right form, or a stream up to its `[DONE]`."""
    FAILED = "failed"
    """Honestly: an error in OpenAI's form, or an error event that ends the stream."""
    LEFT = "left"
    """The client closed the connection on purpose."""
    LOST = "lost"
    """Cut off, or in a form that no client of OpenAI's understands."""
    HUNG = "hung"
    """Neither end came before the deadline."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request."""

    kind: str
    route: str
    """As the gateway names it."""
    outcome: Outcome
    status: int | None
    """None without an answer."""
    reason: str | None = None
    """The error's code; for what is lost, why."""
    seconds: float


def responses(records: Iterable[Record]) -> Counter[tuple[str, str]]:
    """How often each route and status should stand in the gateway's metrics."""
    return Counter((record.route, str(_status(record))) for record in records)


def failures(records: Iterable[Record]) -> Counter[str]:
    """How often each reason should."""
    reasons = (CLIENT_LEFT if record.outcome is Outcome.LEFT else record.reason for record in records)
    return Counter(reason for reason in reasons if reason is not None)


def slowest(records: Sequence[Record]) -> Record:
    """The one that took longest."""
    return max(records, key=lambda record: record.seconds)


def _status(record: Record) -> int | None:
    return LEFT_STATUS if record.outcome is Outcome.LEFT and record.status is None else record.status
