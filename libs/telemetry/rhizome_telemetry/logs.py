"""Log lines for people or for programs, with the ids of the request that a line belongs to.

    console  2026-01-31T12:00:00.123Z INFO rhizome-engine core ready request=req_1 trace=4bf9…
    json     {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "service": "rhizome-engine", …}

A task that works for one request sets `log_request_id` and `log_trace_id`. Where many requests are served in
one call, as while a frame is read, a record is told whose it is: `_log.info(…, extra=about(parent))`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rhizome_telemetry.propagation import TraceParent

LogFormat = Literal["console", "json"]

log_request_id: ContextVar[str] = ContextVar("log_request_id", default="")
"""Id of the request that the current task works for; empty outside of requests."""
log_trace_id: ContextVar[str] = ContextVar("log_trace_id", default="")
"""Its trace id."""

_OURS = "rhizome"
_BREAKS = (*range(0x20), 0x7F, 0x85, 0x2028, 0x2029)
_ESCAPED = {code: repr(chr(code))[1:-1] for code in _BREAKS if chr(code) != "\t"}
"""What could end a line, or tell a terminal to do something."""


def about(parent: TraceParent | None, request_id: str = "") -> dict[str, str]:
    """The `extra` of a record that belongs to a request.

    Args:
        parent: where the request is in its trace; knows the id that its client was given.
        request_id: where the client was given none.
    """
    if parent is None:
        return {"request_id": request_id}
    return {"request_id": parent.request_id or request_id, "trace_id": parent.trace_id}


def _ids(record: logging.LogRecord) -> tuple[str, str]:
    request_id = getattr(record, "request_id", "") or log_request_id.get()
    return request_id, getattr(record, "trace_id", "") or log_trace_id.get()


def _stamp(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


class LineFormatter(logging.Formatter):
    """For people: time, level, service, message, ids; tracebacks on following lines."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; line breaks in the message are escaped, so that nobody can forge a record."""
        message = record.getMessage().translate(_ESCAPED)
        line = f"{_stamp(record)} {record.levelname} {self._service} {message}"
        request_id, trace_id = _ids(record)
        if request_id:
            line = f"{line} request={request_id.translate(_ESCAPED)}"
        if trace_id:
            line = f"{line} trace={trace_id}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """For programs: one object a line, a traceback included, in ASCII."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname,
            "service": self._service,
            "pid": self._pid,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id, trace_id = _ids(record)
        if request_id:
            line["request_id"] = request_id
        if trace_id:
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _OnlyOurDetails(logging.Filter):
    """Keeps what libraries tell at DEBUG out: nobody here decides what that is, and it may be a prompt."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or record.name.startswith(_OURS)


def configure_logging(service: str, level: str = "INFO", format: LogFormat = "console") -> None:  # noqa: A002
    """Send all log records of this process to stderr, replacing what was configured before.

    Args:
        service: name in every line, such as `rhizome-gateway`.
        level: `DEBUG`, `INFO`, `WARNING` or `ERROR`, in any case.
        format: how a line looks.

    Raises:
        ValueError: the level is none of these.
    """
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        raise ValueError(f"log level {level!r} is unknown; use DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if format == "json" else LineFormatter(service))
    handler.addFilter(_OnlyOurDetails())
    logging.basicConfig(handlers=[handler], level=names[level.upper()], force=True)
    logging.captureWarnings(True)
