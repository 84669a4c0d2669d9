"""What all requests share, and how it is divided: prefill tokens of the engine, and memory for bodies."""

import math
from collections.abc import Callable
from typing import Any

from server.errors import GatewayError, Reason
from server.settings import Settings
from server.telemetry.lane_metrics import make_lane_metrics
from server.telemetry.metrics import Metrics
from server.traffic.lanes import Lanes

# A body of text alone is smaller than this share of the largest body.
SMALL_BODY_SHARE = 1 / 64


def make_prefill_lanes(settings: Settings, metrics: Metrics, *, context_length: int) -> Lanes:
    """Lanes by prompt length, in tokens; room is held from a request's way to the engine to its first token.

    Raises:
        ValueError: the settings leave too little for one of the longest prompts of each lane.
    """
    largest = sorted({math.ceil(share * context_length) for share in settings.lane_shares} | {context_length})
    return _make_lanes(
        "max_prefill_tokens",
        total=settings.max_prefill_tokens or 2 * context_length * len(settings.upstream),
        largest=largest,
        max_waiting=settings.max_queued,
        max_wait_seconds=settings.max_queue_seconds,
        refusal=_refuse(settings, Reason.QUEUE_FULL, "The queue for prompts of this length is full"),
        metrics=make_lane_metrics(metrics.instruments, "prefill_tokens", "Prefill tokens", largest),
    )


def make_body_lanes(settings: Settings, metrics: Metrics) -> Lanes:
    """Lanes by body size, in bytes; room is held from before the first byte is read.

    Raises:
        ValueError: the settings leave too little for one of the largest bodies.
    """
    largest = sorted({math.ceil(SMALL_BODY_SHARE * settings.max_body_bytes), settings.max_body_bytes})
    return _make_lanes(
        "max_bodies_bytes",
        total=settings.max_bodies_bytes,
        largest=largest,
        max_waiting=settings.max_queued_bodies,
        max_wait_seconds=settings.max_body_wait_seconds,
        refusal=_refuse(settings, Reason.MEMORY_FULL, "The memory for requests of this size is full"),
        metrics=make_lane_metrics(metrics.instruments, "body_bytes", "Bytes of bodies", largest),
    )


def make_fetch_lanes(settings: Settings, metrics: Metrics) -> Lanes:
    """Lanes by what the images to fetch for a request may have, in bytes; room is held until the request's end.

    Raises:
        ValueError: the settings leave too little for one of the largest requests.
    """
    largest = sorted({settings.max_image_bytes, settings.max_total_image_bytes})
    return _make_lanes(
        "max_fetched_bytes",
        total=settings.max_fetched_bytes or 4 * largest[-1],
        largest=largest,
        max_waiting=settings.max_queued_bodies,
        max_wait_seconds=settings.max_body_wait_seconds,
        refusal=_refuse(settings, Reason.MEMORY_FULL, "The memory for fetched images is full"),
        metrics=make_lane_metrics(metrics.instruments, "fetched_bytes", "Bytes of fetched images", largest),
    )


def _make_lanes(setting: str, **options: Any) -> Lanes:
    try:
        return Lanes(**options)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def _refuse(settings: Settings, reason: Reason, message: str) -> Callable[[float | None], GatewayError]:
    def refusal(seconds: float | None) -> GatewayError:
        wait = settings.retry_after_seconds if seconds is None else max(seconds, 1.0)
        return GatewayError(503, reason, f"{message}; try again later.", retry_after_seconds=wait)

    return refusal
