"""What is in use, what waits and how long, in each lane of something shared."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Gauge, Histogram

from server.telemetry.instruments import SECONDS_BUCKETS, Instruments


@dataclass(frozen=True, kw_only=True)
class LaneMetrics:
    """Of one lane."""

    in_flight: Gauge
    waiting: Gauge
    wait_seconds: Histogram
    """Of all that were let through; nearly all of them waited for nothing."""


def make_lane_metrics(make: Instruments, unit: str, what: str, largest: Sequence[int]) -> list[LaneMetrics]:
    """The metrics of each lane, whose label is the largest amount that its requests ask for.

    Args:
        unit: begins the metrics' names: prefill_tokens, body_bytes.
        what: begins their descriptions.
        largest: of each lane; configured, never a client's.
    """
    lanes = [str(amount) for amount in largest]
    in_flight = make.gauges(f"{unit}_in_flight", f"{what} in flight.", "lane", lanes)
    waiting = make.gauges(f"{unit}_waiting_requests", f"Requests that wait for {what.lower()}.", "lane", lanes)
    wait_seconds = make.histograms(
        f"{unit}_wait_seconds", f"How long requests waited for {what.lower()}.", SECONDS_BUCKETS, "lane", lanes
    )
    return [
        LaneMetrics(in_flight=in_flight[lane], waiting=waiting[lane], wait_seconds=wait_seconds[lane]) for lane in lanes
    ]
