"""All metrics of one gateway: a registry of its own, grouped by topic."""

from collections.abc import Collection

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from server.telemetry.engine_metrics import EngineMetrics
from server.telemetry.instruments import Instruments
from server.telemetry.prompt_metrics import PromptMetrics
from server.telemetry.request_metrics import RequestMetrics
from server.telemetry.source_metrics import SourceMetrics
from server.telemetry.traffic_metrics import TrafficMetrics
from server.telemetry.worker_files import WorkerFiles


class Metrics:
    """What the gateway counts."""

    def __init__(self, model: str, *, engines: Collection[str], workers: WorkerFiles | None = None) -> None:
        """`model` and `engines` are configured names; nothing a client sends ever becomes a label's value.

        `workers` is where other processes of the same gateway put their metrics.
        """
        # A second series for each counter and histogram, of no use to Prometheus.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        make = self.instruments = Instruments(model)
        self._workers = workers
        self._registry = make.registry
        self.prompts = PromptMetrics(make)
        self.requests = RequestMetrics(make)
        self.traffic = TrafficMetrics(make)
        self.sources = SourceMetrics(make)
        self.engines = EngineMetrics(make, engines)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text form, of every worker process together."""
        if self._workers is None:
            return generate_latest(self._registry)
        self._workers.forget_dead()
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._workers.path))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
