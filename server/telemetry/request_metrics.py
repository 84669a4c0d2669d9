"""How requests end and how long they take."""

from prometheus_client import Counter

from server.errors import Reason
from server.telemetry.context_class import COUNTED, ContextClass
from server.telemetry.instruments import PREFIX, SECONDS_BUCKETS, Instruments
from server.telemetry.phases import Phase, Phases

# Whose doing a failure is: what alerts and dashboards select by. Every other reason is a wrong request.
KINDS = {
    "budget": {
        Reason.BODY_TOO_LARGE,
        Reason.CONTEXT_LENGTH_EXCEEDED,
        Reason.EFFECTIVE_WINDOW_EXCEEDED,
        Reason.FILE_QUOTA_EXCEEDED,
        Reason.MEDIA_BUDGET_EXCEEDED,
        Reason.TOO_MANY_IMAGES,
        Reason.TOO_MANY_TOKENS,
    },
    "client": {Reason.BODY_TIMEOUT, Reason.CLIENT_LEFT},
    "overload": {Reason.MEMORY_FULL, Reason.QUEUE_FULL, Reason.RATE_LIMIT_EXCEEDED},
    "server": {
        Reason.ENGINE_FAILED,
        Reason.ENGINE_UNAVAILABLE,
        Reason.INTERNAL,
        Reason.LIMITS_UNAVAILABLE,
        Reason.STOPPING,
    },
}


class RequestMetrics:
    """Responses, failures, latencies."""

    def __init__(self, make: Instruments) -> None:
        self.in_flight = make.gauge("requests_in_flight", "Generating requests being served.")
        self._duration = make.histograms(
            "request_duration_seconds",
            "Whole generating requests that succeeded, from their last byte to the answer's.",
            SECONDS_BUCKETS,
            "context_class",
            COUNTED,
        )
        self._first_token = make.histograms(
            "time_to_first_token_seconds",
            "From the request's last byte to the first event with content; streams only.",
            SECONDS_BUCKETS,
            "context_class",
            COUNTED,
        )
        self._phases = make.histograms(
            "request_phase_seconds", "What generating requests spent in each phase.", SECONDS_BUCKETS, "phase", Phase
        )
        self._responses = Counter(
            PREFIX + "requests", "Responses by route and status.", ["route", "status"], registry=make.registry
        )
        errors = Counter(
            PREFIX + "errors",
            "Failed requests by reason, and by whose doing it is.",
            ["reason", "kind", "context_class"],
            registry=make.registry,
        )
        self._errors = {
            (reason, context_class): errors.labels(reason, kind_of(reason), context_class)
            for reason in Reason
            for context_class in ContextClass
        }

    def count_response(self, route: str, status: int) -> None:
        """Counts a finished response; `route` is a path of the app, never a client's."""
        self._responses.labels(route, str(status)).inc()

    def count_error(self, reason: Reason, context_class: ContextClass) -> None:
        """Counts a failed request."""
        self._errors[reason, context_class].inc()

    def observe_duration(self, seconds: float, context_class: ContextClass) -> None:
        """Counts a request that succeeded."""
        self._duration[context_class].observe(seconds)

    def observe_first_token(self, seconds: float, context_class: ContextClass) -> None:
        """Counts a stream's first event."""
        self._first_token[context_class].observe(seconds)

    def observe_phases(self, phases: Phases) -> None:
        """Counts where an ended request's time went."""
        for phase, seconds in phases.seconds().items():
            self._phases[phase].observe(seconds)


def kind_of(reason: Reason) -> str:
    """Whose doing a failure is: one of `KINDS`, or "request" for one that was wrong in itself."""
    return next((kind for kind, reasons in KINDS.items() if reason in reasons), "request")
