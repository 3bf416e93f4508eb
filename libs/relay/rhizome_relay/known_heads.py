r"""Heads that were read before: a client says the same in each request, but for the length of its body.

The parser reads every head once. What comes later with the same bytes around the digits of Content-Length,
and just as many bytes behind it as they say, has the same reading, so none is needed:

    POST /v1/x HTTP/1.1 … Content-Length: 2069 … \r\n\r\n{ … }
    └──────────────── key ──────────────┘    └── key ───┘└ 2069 bytes

All else goes to the parser: other bytes, a body that is not whole, a second message behind it. The parser
stands between two messages meanwhile and does not miss what it does not see. What the other side is told of a
head is kept with it.

A table is emptied when it is full, and a connection that brings `PATIENCE` new heads in a row is not looked
up any more. Heads have clients' keys in them; they stay in memory until then.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from rhizome_relay.request import Pairs, RelayRequest

PATIENCE: Final = 8
_MOST_HEADS: Final = 256
_MOST_BYTES: Final = 4096
_NAME: Final = b"ontent-Length: "
_LOWER: Final = b"ontent-length: "
_STARTS: Final = (b"\r\nC", b"\r\nc")
_END: Final = b"\r\n\r\n"
_UNFIT: Final = frozenset((b"x-request-id", b"expect", b"upgrade", b"transfer-encoding"))


class KnownRequest:
    """The reading of a request's head.

    Attributes:
        lines: what backends are told of it, by the names of headers that they get in place of the client's.
    """

    __slots__ = ("_at", "_like", "lines")

    def __init__(self, like: RelayRequest) -> None:
        self.lines: dict[tuple[bytes, ...], bytes] = {}
        self._at = [name for name, _ in like.headers].index(b"content-length")
        self._like = RelayRequest(
            like.method, like.target, like.path, like.version, like.headers, like.fields
        )
        self._like.host = like.host

    def again(self, body: bytes, digits: bytes) -> RelayRequest:
        """A whole request with this head, but for the length."""
        like = self._like
        headers, fields = like.headers.copy(), like.fields.copy()
        headers[self._at] = (b"content-length", digits)
        fields[b"content-length"] = digits
        request = RelayRequest(like.method, like.target, like.path, like.version, headers, fields)
        request.known = self
        request.host = like.host
        request.body = body
        request.length = len(body)
        request.complete = True
        return request


class KnownResponse:
    """The reading of a response's head, but for the length.

    Attributes:
        status: of the response.
        headers: names in lower case.
        lines: what clients are told of it; empty while nobody was.
    """

    __slots__ = ("headers", "lines", "status")

    def __init__(self, status: int, headers: Pairs) -> None:
        self.status = status
        self.headers = [pair for pair in headers if pair[0] != b"content-length"]
        self.lines = b""


Known = TypeVar("Known", KnownRequest, KnownResponse)


class KnownHeads(Generic[Known]):
    """A table of one of the two."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, Known] = {}

    def find(self, data: bytes) -> tuple[Known, bytes, bytes] | None:
        """The reading of the head, if `data` is one whole message, its body, and the digits of its length."""
        place = _place(data)
        if place is None:
            return None
        at, stop, end = place
        known = self._heads.get(data[:at] + data[stop:end])
        if known is None:
            return None
        digits = data[at:stop]
        return (known, data[end:], digits) if digits == b"%d" % (len(data) - end) else None

    def learn(self, data: bytes, length: int, known: Known) -> None:
        """Keep what the parser read, if `data` is one whole message with a body of so many bytes."""
        place = _place(data)
        if place is None:
            return
        at, stop, end = place
        if (
            data.startswith(_STARTS, at - len(_NAME) - len(_STARTS[0]))
            and data.find(_END) + len(_END) == end
            and data[at:stop] == b"%d" % length
            and len(data) == end + length
        ):
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[data[:at] + data[stop:end]] = known


def may_come_again(request: RelayRequest) -> bool:
    """Whether a head, which was read in full, says nothing that is for one request only."""
    return (
        request.complete
        and request.held
        and request.keep_alive
        and b"content-length" in request.fields
        and _UNFIT.isdisjoint(request.fields)
    )


def _place(data: bytes) -> tuple[int, int, int] | None:
    """Where the digits of Content-Length begin and end, and where the head ends; `None` where one lacks."""
    name = data.find(_NAME, 0, _MOST_BYTES)
    if name < 0:
        name = data.find(_LOWER, 0, _MOST_BYTES)
    at = name + len(_NAME)
    stop = data.find(b"\r", at, at + 20)
    end = data.find(_END, stop, _MOST_BYTES)
    return None if name < 0 or stop < 0 or end < 0 else (at, stop, end + len(_END))
