"""All metrics of one gateway: a registry of its own, grouped by topic."""

from collections.abc import Collection

from prometheus_client import generate_latest

from server.telemetry.engine_metrics import EngineMetrics
from server.telemetry.instruments import Instruments
from server.telemetry.prompt_metrics import PromptMetrics
from server.telemetry.request_metrics import RequestMetrics
from server.telemetry.traffic_metrics import TrafficMetrics


class Metrics:
    """What the gateway counts."""

    def __init__(self, model: str, *, engines: Collection[str]) -> None:
        """`model` and `engines` are configured names; nothing a client sends ever becomes a label's value."""
        make = Instruments(model)
        self._registry = make.registry
        self.prompts = PromptMetrics(make)
        self.requests = RequestMetrics(make)
        self.traffic = TrafficMetrics(make)
        self.engines = EngineMetrics(make, engines)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self._registry)
