"""The gateway's metrics: one registry an app, every label from a bounded set."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.errors import Reason
from server.prompt.prompt_counter import PromptCount

# The large buckets of a 256k window, and small ones that tell miniature models' prompts apart.
TOKEN_BUCKETS = (
    16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072,
    196608, 262144,
)  # fmt: skip
IMAGE_BUCKETS = (0, 1, 2, 4, 8, 16, 20, 32, 64, 100, 150, 200)
RATIO_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0)
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 240, 480, 960)
DIFFERENCE_BUCKETS = (0, 1, 4, 16, 64, 256, 1024)


class Metrics:
    """What the gateway counts; each model-bound metric has the one label `model`, the configured name."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(f"laid_{name}", text, ["model"], buckets=buckets, registry=self.registry)
            return metric.labels(model)

        self._prompt_tokens = histogram(
            "prompt_tokens", "Prompt tokens of admitted requests, text and images.", TOKEN_BUCKETS
        )
        self._image_tokens = histogram("image_tokens", "Image tokens of admitted requests.", TOKEN_BUCKETS)
        self._images = histogram("request_images", "Images of admitted requests.", IMAGE_BUCKETS)
        self._window_use = histogram("window_use_ratio", "Prompt tokens over the context length.", RATIO_BUCKETS)
        self._effective_window_use = histogram(
            "effective_window_use_ratio",
            "Prompt tokens over the effective window; empty where the checkpoint has none.",
            RATIO_BUCKETS,
        )
        self.time_to_first_token_seconds = histogram(
            "time_to_first_token_seconds",
            "From the request's last byte to the first event with content; streams only.",
            SECONDS_BUCKETS,
        )
        self.admission_seconds = histogram(
            "admission_seconds", "Parsing, checking and counting a request.", SECONDS_BUCKETS
        )
        self.request_seconds = histogram(
            "request_seconds", "Whole chat requests, from the first byte to the last.", SECONDS_BUCKETS
        )
        self._count_difference = histogram(
            "count_difference_tokens",
            "Absolute difference between the gateway's count of prompt tokens and the engine's usage.",
            DIFFERENCE_BUCKETS,
        )
        self._requests = Counter(
            "laid_requests", "Responses by route and status.", ["route", "status"], registry=self.registry
        )
        self._errors = Counter("laid_errors", "Failed requests by reason.", ["reason"], registry=self.registry)
        for reason in Reason:
            self._errors.labels(reason.value)
        self.requests_in_flight = Gauge(
            "laid_requests_in_flight", "Chat requests being served.", ["model"], registry=self.registry
        ).labels(model)
        self.keys = Gauge("laid_keys", "Keys that the gateway knows.", registry=self.registry)
        self.keys_reload_errors = Counter(
            "laid_keys_reload_errors",
            "Times that the keys file changed and could not be read; the keys before the change stay.",
            registry=self.registry,
        )

    def observe_prompt(self, count: PromptCount, window_use: float, effective_window_use: float | None) -> None:
        """Counts an admitted prompt."""
        self._prompt_tokens.observe(count.prompt_tokens)
        self._image_tokens.observe(count.total_image_tokens)
        self._images.observe(len(count.image_tokens))
        self._window_use.observe(window_use)
        if effective_window_use is not None:
            self._effective_window_use.observe(effective_window_use)

    def observe_usage(self, counted_tokens: int, engine_tokens: int) -> None:
        """Compares the gateway's count with the engine's."""
        self._count_difference.observe(abs(counted_tokens - engine_tokens))

    def count_response(self, route: str, status: int) -> None:
        """Counts a finished response; `route` is a path pattern of the app, never a client's path."""
        self._requests.labels(route, str(status)).inc()

    def count_error(self, reason: Reason) -> None:
        """Counts a failed request."""
        self._errors.labels(reason.value).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self.registry)
