"""A client's connection that counts what comes back without reading it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any, cast

from rhizome_testing.metronome import MARKER

_MARKER = MARKER.encode()
_EVENT = b"data:"
_LAST_CHUNK = b"0\r\n\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(slots=True)
class Received:
    """What all connections received.

    Attributes:
        events: server-sent events, the last ones (`[DONE]`) included.
        tokens: tokens in them.
        reads: how often a socket had something.
        refused: responses other than 200, and connections lost within one.
    """

    events: int = 0
    tokens: int = 0
    reads: int = 0
    refused: int = 0


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with at most one request at a time.

    Args:
        received: where to count.

    Attributes:
        began: done when the response's head was there.
        spoke: done when the first token was there.
        ended: done when the response was complete.
        asked_at: when the request was written, by `time.perf_counter`.
        spoke_at: when the first token came; 0 before.
    """

    def __init__(self, received: Received) -> None:
        self._received = received
        self._transport: asyncio.Transport | None = None
        self._renew()

    def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        self.began: asyncio.Future[None] = loop.create_future()
        self.spoke: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.asked_at = self.spoke_at = 0.0
        self._head: bytes | None = b""
        self._left: int | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was waited for will not come."""
        if self.asked_at and not self.ended.done():
            self._received.refused += not self.began.done()
        for waited in (self.began, self.spoke, self.ended):
            if not waited.done():
                waited.set_result(None)

    def ask(self, request: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._renew()
        self.asked_at = time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """Go away, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count."""
        received = self._received
        received.reads += 1
        if self._head is not None:
            data = self._read_head(self._head + data)
            if self._head is not None:
                return
        tokens = data.count(_MARKER)
        received.tokens += tokens
        joined = self._tail + data
        received.events += joined.count(_EVENT)
        self._tail = joined[-len(_EVENT) + 1 :]
        if tokens and not self.spoke_at:
            self.spoke_at = time.perf_counter()
            self.spoke.set_result(None)
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 if self._left is not None else joined.endswith(_LAST_CHUNK):
            self.ended.set_result(None)

    def _read_head(self, data: bytes) -> bytes:
        """What follows the head of the response; nothing while it is incomplete."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return b""
        self._head = None
        self._received.refused += not data.startswith(b"HTTP/1.1 200")
        length = _CONTENT_LENGTH.search(data, 0, end + 2)
        self._left = int(length[1]) if length else None
        self.began.set_result(None)
        return data[end + 4 :]


def chat_request(*, stream: bool, max_tokens: int | None = None, content: str = "Hi") -> bytes:
    """A chat completion as a client would send it."""
    message = {"role": "user", "content": content}
    fields: dict[str, Any] = {"model": "metronome", "messages": [message], "stream": stream}
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


HEALTH_REQUEST = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def connect(port: int, received: Received) -> Connection:
    """Open a connection to a server on this host."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(received), "127.0.0.1", port)
    return connection
