"""Makes metrics: one registry, one prefix, and every value of every label known before the first request."""

from collections.abc import Iterable
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# The large buckets of a 256k window, and small ones that tell miniature models' prompts apart.
TOKEN_BUCKETS = (
    16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072,
    196608, 262144,
)  # fmt: skip
IMAGE_BUCKETS = (0, 1, 2, 4, 8, 16, 20, 32, 64, 100, 150, 200)
RATIO_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0)
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 240, 480, 960)
# 1 KiB to 64 MiB.
BYTES_BUCKETS = tuple(4**power for power in range(5, 14))
# A thumbnail to the 400 megapixels that a request may have by default.
PIXELS_BUCKETS = (1e4, 1e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8, 2e8, 4e8)

PREFIX = "laid_"
# How the values of several worker processes become one.
GaugeMode = Literal["livesum", "livemin", "livemax"]

V = TypeVar("V", bound=str)


class Instruments:
    """Every metric carries the label `model`, the configured name, so that several gateways' can be told apart.

    A metric with one more label gives a dictionary from the label's values to children; a value that was not given
    here is a KeyError, so that nothing a client sends can become a new series.
    """

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram with the label `model` alone."""
        metric = Histogram(PREFIX + name, text, ["model"], buckets=buckets, registry=self.registry)
        return metric.labels(self._model)

    def histograms(
        self, name: str, text: str, buckets: tuple[float, ...], label: str, values: Iterable[V]
    ) -> dict[V, Histogram]:
        """A histogram for each value of one more label."""
        metric = Histogram(PREFIX + name, text, ["model", label], buckets=buckets, registry=self.registry)
        return {value: metric.labels(self._model, value) for value in values}

    def counter(self, name: str, text: str) -> Counter:
        """A counter with the label `model` alone; `_total` is appended to its name."""
        return Counter(PREFIX + name, text, ["model"], registry=self.registry).labels(self._model)

    def counters(self, name: str, text: str, label: str, values: Iterable[V]) -> dict[V, Counter]:
        """A counter for each value of one more label."""
        metric = Counter(PREFIX + name, text, ["model", label], registry=self.registry)
        return {value: metric.labels(self._model, value) for value in values}

    def gauge(self, name: str, text: str, mode: GaugeMode = "livesum") -> Gauge:
        """A gauge with the label `model` alone; `mode` says what several worker processes' values become."""
        metric = Gauge(PREFIX + name, text, ["model"], registry=self.registry, multiprocess_mode=mode)
        return metric.labels(self._model)

    def gauges(
        self, name: str, text: str, label: str, values: Iterable[V], mode: GaugeMode = "livesum"
    ) -> dict[V, Gauge]:
        """A gauge for each value of one more label."""
        metric = Gauge(PREFIX + name, text, ["model", label], registry=self.registry, multiprocess_mode=mode)
        return {value: metric.labels(self._model, value) for value in values}
