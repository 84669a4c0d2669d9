"""Logs as one JSON object a line; what is logged are numbers and names, never prompts or images."""

import json
import logging
import sys
from typing import Any

LOGGER = logging.getLogger("laid.server")


class JsonFormatter(logging.Formatter):
    """Time, level, event and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            # The type and the place, not the text: an exception's text may quote what a client sent.
            kind, _, traceback = record.exc_info
            while traceback is not None and traceback.tb_next is not None:
                traceback = traceback.tb_next
            entry["exception"] = kind.__name__ if kind else None
            if traceback is not None:
                entry["at"] = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        return json.dumps(entry)


def configure_logs(level: str = "INFO") -> None:
    """Sends this package's logs, and uvicorn's errors, to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER.name, "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level if name == LOGGER.name else "WARNING")
        logger.propagate = False
