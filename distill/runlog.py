"""The log of a run: one JSON object a step."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

_AVERAGED_STEPS = 20


class RunLog:
    """Appends to log.jsonl."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Opens the log and drops what an interrupted run logged after its last saved state."""
        self._path = path
        kept = [entry for entry in self.entries() if entry["step"] < first_step]
        path.write_text("".join(_line(entry) for entry in kept), encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        """Writes one step's entry; it is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))

    def entries(self) -> list[dict[str, Any]]:
        """All entries, oldest first; a line that a crash cut off is left out."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines()]

    def last_losses(self) -> dict[str, float]:
        """Mean of each loss term over the last steps."""
        values: dict[str, list[float]] = defaultdict(list)
        for entry in self.entries()[-_AVERAGED_STEPS:]:
            for name, value in entry["losses"].items():
                values[name].append(value)
        return {name: sum(each) / len(each) for name, each in values.items()}


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
