"""Whether one engine may be asked, as its checks and its requests show."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.telemetry.logs import LOGGER


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one look at an engine showed."""

    trouble: str | None = None
    """Why it should not be asked; None if it can be."""
    is_certain: bool = False
    """One such finding is enough: nobody listens there, or it serves something else."""


class Health:
    """Up or down, by rules under which neither one slow check nor one lucky one decides."""

    def __init__(self, name: str, *, rise: int, fall: int, on_change: Callable[[bool], None]) -> None:
        """
        Args:
            name: for the log.
            rise: so many good findings in a row bring an engine back; the very first finding of all decides alone.
            fall: so many bad ones in a row put it out.
            on_change: called with whether it is up.
        """
        self.is_up = False
        self.back_at: float | None = None
        """When it should be up again, on `time.monotonic`'s clock, where somebody knows."""
        self._name = name
        self._rise, self._fall = rise, fall
        self._on_change = on_change
        self._is_new = True
        self._num_alike = 0
        self._was_good = False

    def note(self, finding: Finding) -> None:
        """Takes what a check or a request showed."""
        is_good = finding.trouble is None
        self._num_alike = self._num_alike + 1 if is_good == self._was_good else 1
        self._was_good = is_good
        is_enough = self._is_new or finding.is_certain or self._num_alike >= (self._rise if is_good else self._fall)
        if is_enough and (self._is_new or is_good != self.is_up):
            self._change(finding)

    def seconds_until_back(self) -> float:
        """0 where that is not known."""
        return 0.0 if self.back_at is None else max(0.0, self.back_at - time.monotonic())

    def _change(self, finding: Finding) -> None:
        self._is_new = False
        self.is_up = finding.trouble is None
        self.back_at = None
        self._on_change(self.is_up)
        fields = {"engine": self._name}
        if finding.trouble is None:
            LOGGER.info("engine_up", extra={"fields": fields})
        else:
            LOGGER.error("engine_down", extra={"fields": fields | {"trouble": finding.trouble}})
