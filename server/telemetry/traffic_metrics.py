"""How much work is in the gateway and how much waits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from server.telemetry.instruments import Instruments

Limit = Literal["requests", "tokens", "images", "concurrency"]


class TrafficMetrics:
    """Prompt tokens being served, and the keys of those who ask."""

    def __init__(self, make: Instruments) -> None:
        self._tokens_in_flight = make.gauge("tokens_in_flight", "Prompt tokens of requests that the engine works on.")
        self.keys = make.gauge("keys", "Keys that the gateway knows.", "livemax")
        self.keys_reload_errors = make.counter(
            "keys_reload_errors",
            "Times that the keys file changed and could not be read; the keys before the change stay.",
        )
        self.rate_limited = make.counters(
            "rate_limited", "Requests refused by a limit of their key.", "limit", get_args(Limit)
        )
        self.limits_errors = make.counter(
            "limits_errors", "Times that the use of a key could not be counted because its storage did not answer."
        )

    @contextmanager
    def tokens_in_flight_for(self, prompt_tokens: int) -> Iterator[None]:
        """Counts a prompt's tokens as long as the context is open."""
        self._tokens_in_flight.inc(prompt_tokens)
        try:
            yield
        finally:
            self._tokens_in_flight.dec(prompt_tokens)
