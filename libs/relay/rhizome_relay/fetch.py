"""One small request of our own to a backend, over the connections that the relay keeps anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rhizome_relay.known_heads import KnownResponse
from rhizome_relay.picker import Ending, Origin
from rhizome_relay.pool import OriginPool, Pools
from rhizome_relay.request import Pairs
from rhizome_relay.settings import MIB
from rhizome_relay.upstream import Upstream

_LIKELY_BYTES: Final = 8 * MIB


class BadAnswerError(Exception):
    """What came is no HTTP response, or too long a one."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole response.

    Attributes:
        status: of the final response.
        headers: names in lower case, repeated ones kept.
        body: without its framing; a content coding is left as it is, but none was asked for.
    """

    status: int
    headers: Pairs
    body: bytes


class _Collecting:
    """Receives a response until its end; see `upstream.Receiver`."""

    __slots__ = ("_body", "_bytes", "_headers", "_max_bytes", "_status", "done")

    def __init__(self, max_bytes: int) -> None:
        self.done: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self._max_bytes = max_bytes
        self._body: list[bytes] = []
        self._bytes = self._status = 0
        self._headers: Pairs = []

    def on_early_hints(self, headers: Pairs) -> None:
        """Of no use here."""

    def on_response(
        self, status: int, headers: Pairs, length: int, known: KnownResponse | None = None
    ) -> bool:
        """Keep the head; a body that is announced as too long is not waited for."""
        self._status, self._headers = status, headers
        if length > self._max_bytes:
            self._refuse()
        return True

    def on_chunk(self, piece: bytes, framed: bytes) -> None:
        """Keep a piece."""
        self.on_data([piece], [], False)

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        """Keep some."""
        if self.done.done():
            return
        self._body += parts
        self._bytes += sum(map(len, parts))
        if self._bytes > self._max_bytes:
            self._refuse()
        elif ended:
            self.done.set_result(Fetched(self._status, self._headers, b"".join(self._body)))

    def on_failure(self, ending: Ending, reason: str) -> None:
        """It will not come."""
        if not self.done.done():
            malformed = ending is Ending.MALFORMED
            self.done.set_exception(BadAnswerError(reason) if malformed else ConnectionResetError(reason))

    def on_backend_ready(self) -> None:
        """The request was small enough to be handed over whole."""

    def _refuse(self) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswerError(f"its answer is longer than {self._max_bytes} bytes"))


async def fetch(
    pools: Pools,
    origin: Origin,
    path: bytes,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    timeout_s: float,
    method: bytes = b"GET",
    body: bytes = b"",
    max_bytes: int = _LIKELY_BYTES,
) -> Fetched:
    """Ask a backend and read all of its answer, whatever the status.

    Args:
        pools: whose connections are used.
        origin: the backend.
        path: below the origin's base, with its query; begins with a slash.
        headers: beside Host and Content-Length; names in lower case.
        timeout_s: for everything, connecting included.
        method: such as `GET`.
        body: of the request.
        max_bytes: a longer answer is refused.

    Raises:
        TimeoutError: no connection, or no whole answer, in time.
        OSError: the backend cannot be reached, or closed the connection.
        BadAnswerError: what came is no HTTP response, or too long.
    """
    lines = [b"%b %b%b HTTP/1.1\r\nhost: %b\r\n" % (method, origin.base, path, origin.authority)]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    if body or method not in (b"GET", b"HEAD"):
        lines.append(b"content-length: %d\r\n" % len(body))
    request = b"%b\r\n%b" % (b"".join(lines), body)
    head_only = method == b"HEAD"
    pool = pools.of(origin)
    async with asyncio.timeout(timeout_s):
        if (kept := pool.take()) is not None:
            try:
                return await _exchange(pool, kept, request, head_only, max_bytes)
            except ConnectionResetError:
                if kept.answered:
                    raise
                # It closed an idle connection just as the request went out: that is no fault.
        return await _exchange(pool, await pool.connect(), request, head_only, max_bytes)


async def _exchange(
    pool: OriginPool, upstream: Upstream, request: bytes, head_only: bool, max_bytes: int
) -> Fetched:
    receiver = _Collecting(max_bytes)
    upstream.begin(receiver, head_only)
    upstream.write(request)
    try:
        fetched = await receiver.done
    except BaseException:
        upstream.abort()
        raise
    pool.put(upstream, asyncio.get_running_loop().time())
    return fetched
