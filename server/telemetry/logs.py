"""Logs as one JSON object a line; what is logged are numbers and names, never prompts or images."""

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec

LOGGER = logging.getLogger("laid.server")
REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""Of the request that is being served; every line logged meanwhile carries it."""


class JsonFormatter(logging.Formatter):
    """Time, level, event, the request's id and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            **_event(record),
            **({"request_id": request_id} if (request_id := REQUEST_ID.get(None)) is not None else {}),
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
        return msgspec.json.encode(entry).decode()


def configure_logs(level: str = "INFO") -> None:
    """Sends this package's logs and every library's warnings to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    # Looked up for every line, and in none (https://docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("WARNING")
    LOGGER.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        # uvicorn's command line gives them handlers of their own, and an access log with whole paths.
        logger.handlers = []
        logger.propagate = True
        logger.setLevel("ERROR" if name == "uvicorn.access" else "WARNING")


def _event(record: logging.LogRecord) -> dict[str, str]:
    """What happened; a library's own words are left out, for they may quote a request."""
    if record.name == LOGGER.name:
        return {"event": record.getMessage()}
    return {"event": "library", "logger": record.name, "at": f"{record.pathname}:{record.lineno}"}
