"""Samples that cannot be used: why, where they are, and the count that accounts for every sample."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

Reason = Literal["malformed", "missing image", "unreadable image", "image count", "video", "too long"]

_PRINTED = 20


class BadSampleError(ValueError):
    """A sample that cannot be used; once it leaves the data source, its message starts with the file and line."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Tally:
    """Counts samples as they are read: read = used + skipped, each skipped one under its reason."""

    def __init__(self, log_path: Path | None = None, *, is_quiet: bool = False) -> None:
        """Starts at zero.

        Args:
            log_path: a JSON Lines file, written anew: one object for each skipped sample, and the counts at the end.
            is_quiet: prints nothing; for all processes of a run but one.
        """
        self._log_path = log_path
        self._mode = "w"
        self.is_quiet = is_quiet
        self.used = 0
        self.skipped: Counter[Reason] = Counter()

    @property
    def read(self) -> int:
        """Samples used and skipped together."""
        return self.used + self.skipped.total()

    def use(self) -> None:
        """Counts a sample that will be trained on."""
        self.used += 1

    def skip(self, error: BadSampleError) -> None:
        """Counts a sample that is left out; the first ones are printed, all are in the log."""
        self.skipped[error.reason] += 1
        self._log({"skipped": error.reason, "message": str(error)})
        if self.skipped.total() <= _PRINTED:
            self._print(f"data: skipped: {error}")
        elif self.skipped.total() == _PRINTED + 1:
            self._print("data: skipped: more, not shown here")

    def finish(self) -> None:
        """Prints and logs the counts."""
        self._log({"read": self.read, "used": self.used, "skipped": dict(self.skipped)})
        self._print(f"data: {self}")

    def __str__(self) -> str:
        total = self.skipped.total()
        reasons = ", ".join(f"{self.skipped[reason]} {reason}" for reason in get_args(Reason) if self.skipped[reason])
        return f"{self.read} samples read = {self.used} used + {total} skipped" + (f" ({reasons})" if total else "")

    def _print(self, line: str) -> None:
        if not self.is_quiet:
            tqdm.write(line, file=sys.stderr)

    def _log(self, entry: dict[str, Any]) -> None:
        if self._log_path is not None:
            with self._log_path.open(self._mode, encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self._mode = "a"
