"""Server-sent events, numbered."""

from __future__ import annotations

from typing import Any

import orjson


class NumberedEvents:
    """Writes the events of one stream; each has its name twice, and a number that counts from 0."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = 0

    def write(self, kind: str, /, **fields: Any) -> bytes:
        """One event."""
        body = orjson.dumps({"type": kind, "sequence_number": self._next(), **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def write_delta(self, head: bytes, delta: str) -> bytes:
        """An event of a kind that comes often; `delta_head` made its head."""
        return b'%b%d,"delta":%b}\n\n' % (head, self._next(), orjson.dumps(delta))

    def _next(self) -> int:
        number = self._number
        self._number = number + 1
        return number


def delta_head(kind: str, /, **fields: Any) -> bytes:
    """What all deltas of an item begin with, up to the number."""
    body = orjson.dumps({"type": kind, **fields})[:-1]
    return b'event: %b\ndata: %b,"sequence_number":' % (kind.encode(), body)
