"""One line per log record, with the trace id of the request where one is known."""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar

log_trace_id: ContextVar[str] = ContextVar("log_trace_id", default="")
"""Trace id of the request that the current task works for; empty outside of requests."""


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO rhizome-engine core ready trace=...`, tracebacks on following lines."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; line breaks in the message are escaped, so that nobody can forge a record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {self._service} {message}"
        trace_id = getattr(record, "trace_id", "") or log_trace_id.get()
        if trace_id:
            line = f"{line} trace={trace_id}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def configure_logging(service: str, level: str = "INFO") -> None:
    """Send all log records of this process to stderr, replacing what was configured before.

    Args:
        service: name in every line, such as `rhizome-gateway`.
        level: `DEBUG`, `INFO`, `WARNING` or `ERROR`, in any case.

    Raises:
        ValueError: the level is none of these.
    """
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        raise ValueError(f"log level {level!r} is unknown; use DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service))
    logging.basicConfig(handlers=[handler], level=names[level.upper()], force=True)
    logging.captureWarnings(True)
