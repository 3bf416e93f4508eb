"""Clients of `http_mock.py`, straight or through a proxy; they look at nothing but where answers end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from proxy_bench.http_mock import ANSWER_TAIL, MODEL

_PROMPT_BYTES = 2000
_LIMIT_S = 30.0


def request(fields: str = "") -> bytes:
    """A chat request of 2 KB as a client library sends it."""
    message = f'{{"role": "user", "content": "{"x" * _PROMPT_BYTES}"}}'
    body = f'{{"model": "{MODEL}", {fields}"messages": [{message}]}}'
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: OpenAI/Python 1.109.1\r\n"
        "Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        "Content-Type: application/json\r\nAuthorization: Bearer sk-12345678\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


class Connection(asyncio.Protocol):
    """One kept connection.

    Attributes:
        answers: whole answers that came.
        events: events of streams that came.
        busy: an answer is awaited.
        lost: it was cut, or an answer was an error:
        refusal: this one.
        again: send the next request when an answer came.
        sent_at: when the last request was due.
        taken_s: from due to answered, where that is kept.
    """

    def __init__(self, data: bytes, *, again: bool = False, taken_s: list[float] | None = None) -> None:
        self.answers = self.events = 0
        self.busy = False
        self.lost = False
        self.refusal = b""
        self.again = again
        self.sent_at = 0.0
        self.taken_s = taken_s
        self._data = data
        self._end = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self.lost = True

    def ask(self, due: float = 0.0) -> None:
        """Send the request."""
        assert self._transport is not None
        self.busy, self.sent_at = True, due
        self._transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`."""
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self.lost, self.refusal = True, data
        self.events += data.count(b"data: ")
        self._end = self._end[-len(ANSWER_TAIL) :] + data[-len(ANSWER_TAIL) :]
        if self._end.endswith(ANSWER_TAIL):
            self._end = b""
            self.answers += 1
            self.busy = False
            if self.taken_s is not None:
                self.taken_s.append(time.perf_counter() - self.sent_at)
            if self.again:
                self.ask()

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


async def dial(
    port: int, count: int, data: bytes, *, again: bool = False, taken_s: list[float] | None = None
) -> list[Connection]:
    """Connections that have sent nothing yet."""
    loop = asyncio.get_running_loop()
    made: list[Connection] = []
    for _ in range(count):
        _, connection = await loop.create_connection(
            lambda: Connection(data, again=again, taken_s=taken_s), "127.0.0.1", port
        )
        made.append(connection)
    return made


async def until_answered(connections: Sequence[Connection]) -> None:
    """Wait until each has got an event or an answer.

    Raises:
        ConnectionError: one was cut or refused; the message has its words.
        TimeoutError: one got nothing.
    """
    async with asyncio.timeout(_LIMIT_S):
        while not all(one.events or one.answers for one in connections):
            if lost := [one for one in connections if one.lost]:
                raise ConnectionError(f"{len(lost)} requests were cut or refused: {lost[0].refusal!r}")
            await asyncio.sleep(0.005)


async def at_rate(port: int, rate: float, seconds: float) -> list[float]:
    """Answers to requests at an even pace, in seconds from when each was due; a late client hides nothing."""
    taken_s: list[float] = []
    connections = await dial(port, 16, request(), taken_s=taken_s)
    for connection in connections[:8]:
        connection.ask(time.perf_counter())
    await asyncio.sleep(0.3)
    taken_s.clear()
    due = time.perf_counter()
    until = due + seconds
    while due < until:
        due += 1 / rate
        # Timers of the loop are coarser than what is measured; the rest is spent looking at the clock.
        await asyncio.sleep(max(0.0, due - time.perf_counter() - 0.0015))
        while time.perf_counter() < due:  # noqa: ASYNC110
            await asyncio.sleep(0)
        free = next((one for one in connections if not one.busy), None)
        if free is None:
            connections += await dial(port, 1, request(), taken_s=taken_s)
            free = connections[-1]
        free.ask(due)
    async with asyncio.timeout(_LIMIT_S):
        while any(one.busy for one in connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for connection in connections:
        connection.close()
    return sorted(taken_s)
