"""How long prompts are and what they are made of."""

from typing import Any

from server.prompt.window import WindowUse
from server.telemetry.instruments import (
    BYTES_BUCKETS,
    IMAGE_BUCKETS,
    PIXELS_BUCKETS,
    RATIO_BUCKETS,
    TOKEN_BUCKETS,
    Instruments,
)

DIFFERENCE_BUCKETS = (0, 1, 4, 16, 64, 256, 1024)


class PromptMetrics:
    """One observation each for an admitted request, and for the usage at its answer's end."""

    def __init__(self, make: Instruments) -> None:
        self._prompt_tokens = make.histogram(
            "prompt_tokens", "Prompt tokens of admitted requests, text and images.", TOKEN_BUCKETS
        )
        self._text_tokens = make.histogram("text_tokens", "Text tokens of admitted requests.", TOKEN_BUCKETS)
        self._image_tokens = make.histogram("image_tokens", "Image tokens of admitted requests.", TOKEN_BUCKETS)
        self._images = make.histogram("request_images", "Images of admitted requests.", IMAGE_BUCKETS)
        self._image_bytes = make.histogram(
            "request_image_bytes", "Bytes of an admitted request's images, as files.", BYTES_BUCKETS
        )
        self._image_pixels = make.histogram(
            "request_image_pixels", "Pixels of an admitted request's images, by their headers.", PIXELS_BUCKETS
        )
        self._body_bytes = make.histogram("request_body_bytes", "Bytes of admitted requests' bodies.", BYTES_BUCKETS)
        self._window_use = make.histogram("window_use_ratio", "Prompt tokens over the context length.", RATIO_BUCKETS)
        self._effective_window_use = make.histogram(
            "effective_window_use_ratio",
            "Prompt tokens over the effective window; empty where the checkpoint has none.",
            RATIO_BUCKETS,
        )
        self._cached_tokens = make.histogram(
            "cached_tokens", "Prompt tokens that the engine took from its prefix cache.", TOKEN_BUCKETS
        )
        self._completion_tokens = make.histogram(
            "completion_tokens", "Tokens that the engine generated for a request.", TOKEN_BUCKETS
        )
        self._count_difference = make.histogram(
            "count_difference_tokens",
            "Absolute difference between the gateway's count of prompt tokens and the engine's usage.",
            DIFFERENCE_BUCKETS,
        )
        self._count_mismatches = make.counter(
            "count_mismatches", "Answers whose prompt the engine counted otherwise than the gateway."
        )
        self._fitted_images = make.counter(
            "fitted_images", "Images that were scaled down so that their prompt fits into the window."
        )
        self._context_length = make.gauge("context_length_tokens", "The model's context length.", "livemax")
        self._effective_window = make.gauge(
            "effective_window_tokens", "The model's effective window; 0 where the checkpoint has none.", "livemax"
        )

    def set_windows(self, context_length: int, effective_window: float) -> None:
        """States the model's windows in tokens, once."""
        self._context_length.set(context_length)
        self._effective_window.set(effective_window)

    def observe_window(self, window: WindowUse) -> None:
        """Counts an admitted prompt's tokens, and what it uses of the windows."""
        count = window.count
        self._prompt_tokens.observe(count.prompt_tokens)
        self._text_tokens.observe(count.prompt_tokens - count.total_image_tokens)
        self._image_tokens.observe(count.total_image_tokens)
        self._images.observe(len(count.image_tokens))
        self._window_use.observe(window.use)
        if window.effective_use is not None:
            self._effective_window_use.observe(window.effective_use)
        if window.fitted:
            self._fitted_images.inc(len(window.fitted))

    def observe_media(self, *, body_bytes: int, image_bytes: int, image_pixels: int) -> None:
        """Counts what an admitted request carried."""
        self._body_bytes.observe(body_bytes)
        self._image_bytes.observe(image_bytes)
        self._image_pixels.observe(image_pixels)

    def observe_usage(self, counted_tokens: int, usage: dict[str, Any]) -> None:
        """Takes an answer's last usage, completed (`complete_usage`), and compares it with the gateway's count."""
        difference = abs(counted_tokens - usage["prompt_tokens"])
        self._count_difference.observe(difference)
        if difference:
            self._count_mismatches.inc()
        self._cached_tokens.observe(usage["prompt_tokens_details"]["cached_tokens"])
        self._completion_tokens.observe(usage.get("completion_tokens", 0))
