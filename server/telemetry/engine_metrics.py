"""How the engines are."""

from collections.abc import Collection

from server.telemetry.instruments import Instruments


class EngineMetrics:
    """One gauge for each configured engine."""

    def __init__(self, make: Instruments, engines: Collection[str]) -> None:
        """`engines` are the configured names."""
        # One worker process that cannot reach an engine is enough to look.
        self._up = make.gauges(
            "engine_up", "1 if the engine passed its last health check, else 0.", "engine", engines, "livemin"
        )

        self._failovers = make.counter(
            "engine_failovers", "Requests that a second engine was asked for, because the first could not answer."
        )
        self._restarts = make.counter("engine_restarts", "Times that the gateway started its own engine again.")

    def set_up(self, engine: str, is_up: bool) -> None:
        """Takes a health check's result."""
        self._up[engine].set(int(is_up))

    def count_failover(self) -> None:
        """Counts a request that goes to a second engine."""
        self._failovers.inc()

    def count_restart(self) -> None:
        """Counts a restart of the gateway's own engine."""
        self._restarts.inc()
