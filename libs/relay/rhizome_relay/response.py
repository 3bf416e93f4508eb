"""A backend's response as the client gets it: framed anew, its end visible, or visibly missing."""

from __future__ import annotations

from rhizome_relay.answer import status_line
from rhizome_relay.errors import HttpError
from rhizome_relay.framing import CHUNKED
from rhizome_relay.headers import response_headers, trailer_lines, wants_trailers
from rhizome_relay.known_heads import KnownResponse
from rhizome_relay.request import Pairs, RelayRequest

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_CUT = HttpError(502, "stream_interrupted", "The backend was lost before the response was complete.")


def is_event_stream(headers: Pairs) -> bool:
    """Whether a response is a stream of server-sent events."""
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
    )


def can_be_followed(status: int, headers: Pairs, length: int) -> bool:
    """Whether a response is a stream whose events can be read, and which may become longer than it is."""
    coded = any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers)
    return status == 200 and length < 0 and not coded and is_event_stream(headers)


class ResponseWriter:
    """Turns pieces of a response into bytes for the client.

    Attributes:
        keep_alive: whether the client's connection may serve another request after it.
    """

    __slots__ = ("_chunked", "_head", "_sse", "_tail", "_trailing", "_until_close", "keep_alive")

    def __init__(
        self,
        request: RelayRequest,
        status: int,
        headers: Pairs,
        length: int,
        *,
        own: bytes,
        via: bytes,
        last: bool,
        known: KnownResponse | None = None,
    ) -> None:
        """Render the head.

        Args:
            request: what is answered.
            status: of the response.
            headers: of the backend.
            length: of the body, as in `framing`.
            own: header lines of the proxy.
            via: this proxy's name.
            last: whether the client's connection ends with this response.
            known: what was found out about its head before, where it is not the first like this.
        """
        modern = request.version == "1.1"
        if known is not None and request.method != b"HEAD":
            self._chunked = self._until_close = self._trailing = self._sse = False
            self._tail = b""
            self.keep_alive = request.keep_alive and not last
            if not known.lines:
                known.lines = status_line(status) + b"".join(response_headers(headers, via))
            end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
            self._head = b"%bcontent-length: %d\r\n%b%b" % (known.lines, length, own, end)
            return
        bodyless = request.method == b"HEAD" or status in (204, 304)
        self._chunked = length < 0 and modern
        self._until_close = length < 0 and not modern
        self._trailing = length == CHUNKED and modern and wants_trailers(request)
        self._sse = False
        self._tail = b""
        self.keep_alive = request.keep_alive and not last and not self._until_close
        lines = response_headers(headers, via)
        if bodyless:
            if status != 204:
                lines.extend(
                    [
                        b"content-length: %b\r\n" % value
                        for name, value in headers
                        if name == b"content-length"
                    ]
                )
        elif length >= 0:
            lines.append(b"content-length: %d\r\n" % length)
        else:
            if modern:
                lines.append(b"transfer-encoding: chunked\r\n")
            given = dict(headers)
            self._sse = is_event_stream(headers)
            if self._sse:
                for name, value in ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")):
                    if name not in given:
                        lines.append(b"%b: %b\r\n" % (name, value))
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._head = b"%b%b%b%b" % (status_line(status), b"".join(lines), own, end)

    @property
    def begun(self) -> bool:
        """Whether the head is out."""
        return not self._head

    @property
    def verbatim(self) -> bool:
        """Whether another piece that is one chunk and ends with an event would be passed on as it is."""
        return self._chunked and self._sse and self._tail == b"\n\n" and not self._head

    def encode_chunk(self, piece: bytes, framed: bytes) -> bytes:
        """The next piece, not the first and not the last, which is one chunk of HTTP/1.1 as it came."""
        if not self._chunked:
            return piece
        if self._sse:
            self._mark(piece)
        return framed

    def encode(self, parts: list[bytes], trailers: Pairs, ended: bool) -> bytes:
        """The next pieces, the head before the first."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._chunked:
            if data:
                if self._sse:
                    self._mark(data)
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if ended:
                data += b"0\r\n%b\r\n" % (trailer_lines(trailers) if self._trailing else b"")
        if self._head:
            data = self._head + data
            self._head = b""
        return data

    def _mark(self, data: bytes) -> None:
        """Remember how the stream ends so far; of nearly every event that is always the same."""
        if data.endswith(b"\n\n"):
            self._tail = b"\n\n"
        else:
            self._tail = data[-4:] if len(data) > 3 else (self._tail + data)[-4:]

    def cut(self) -> tuple[bytes, bool]:
        """What to send when there will be no more, and whether the connection must be reset to show it.

        An event that has begun is not completed: clients drop it, as they should.
        """
        if self._chunked and self._sse and self._tail.endswith(_EVENT_ENDS):
            event = b"data: %b\n\n" % _CUT.body()
            return b"%x\r\n%b\r\n" % (len(event), event), False
        return b"", self._until_close
