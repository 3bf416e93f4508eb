"""One gRPC call on an HTTP/2 connection of its own: bytes in, messages out, and the other way round; no I/O.

Frames of HTTP/2 are RFC 9113's; what gRPC makes of them is its `PROTOCOL-HTTP2.md`. Header blocks are left
to `hpack`. The call is the only one of its connection, which leaves of HTTP/2 one stream, two windows each
way and an end; a message that fits a frame, and most do, costs a few microseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final

import grpc
import hpack

from rhizome_transport.call_status import of_http, of_reset, of_trailers
from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.errors import EngineError

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD: Final = 9
_MESSAGE_HEAD: Final = 5
_LARGEST_FRAME: Final = 16_384
"""What RFC 9113 begins with; we ask for no more."""
_LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_OUR_WINDOW: Final = 4 << 20
"""Bytes that the server may send ahead of what we have read from the socket."""
_MOST_HEADER_BYTES: Final = 65_536
_STREAM: Final = 1
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_PING_BYTES, _PRIORITY_BYTES = 8, 5
_MOST_AT_ONCE: Final = 1 << 18
_SECRET: Final = frozenset({"authorization"})


class _Frame(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class _Setting(IntEnum):
    ENABLE_PUSH = 2
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


_CANCEL: Final = 8


class Http2Call:
    """A call that streams both ways, from its first byte to its status.

    A message of more than `MAX_MESSAGE_BYTES` ends it.

    Args:
        path: `/package.Service/Method`.
        authority: the server's name.
        tls: whether the connection is encrypted, which the server is told.
        metadata: sent along.

    Attributes:
        outcome: why it ended; None while it goes on. An end without an error is UNAVAILABLE, too.
        answered: whether the server has begun to speak HTTP/2.
    """

    def __init__(
        self,
        path: str,
        authority: str,
        *,
        tls: bool,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.outcome: EngineError | None = None
        self._headers = (
            (":method", "POST"),
            (":scheme", "https" if tls else "http"),
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-rhizome"),
            *metadata,
        )
        self._decoder = hpack.Decoder(max_header_list_size=_MOST_HEADER_BYTES)
        self._rest = b""
        self._block: tuple[int, bytearray] | None = None
        self.answered = self._has_headers = False
        self._message = bytearray()
        self._unreported = 0
        self._their_window = self._their_first_window = self._shared_window = _FIRST_WINDOW
        self._frame_bytes = _LARGEST_FRAME
        self._reply = bytearray()

    def begin(self) -> bytes:
        """What to write first."""
        settings = (
            (_Setting.ENABLE_PUSH, 0),
            (_Setting.INITIAL_WINDOW_SIZE, _OUR_WINDOW),
            (_Setting.MAX_HEADER_LIST_SIZE, _MOST_HEADER_BYTES),
        )
        block = hpack.Encoder().encode((name, value, name in _SECRET) for name, value in self._headers)
        return b"".join(
            (
                _PREFACE,
                _frame(_Frame.SETTINGS, 0, 0, b"".join(struct.pack("!HL", *one) for one in settings)),
                _frame(_Frame.WINDOW_UPDATE, 0, 0, struct.pack("!L", _OUR_WINDOW - _FIRST_WINDOW)),
                *_header_frames(block),
            )
        )

    @staticmethod
    def packed(message: bytes) -> bytes:
        """A message as it travels, for `data_frames`."""
        return b"\0" + len(message).to_bytes(4, "big") + message

    def data_frames(self, data: memoryview | bytes) -> tuple[bytes, int]:
        """What to write next of packed messages, as far as the server lets us.

        Returns:
            Whole frames, and how many bytes of the data they hold.
        """
        size = min(len(data), self._their_window, self._shared_window, _MOST_AT_ONCE)
        if size <= 0:
            return b"", 0
        self._their_window -= size
        self._shared_window -= size
        if size <= self._frame_bytes:
            return _frame(_Frame.DATA, 0, _STREAM, data if size == len(data) else data[:size]), size
        pieces = (data[at : min(at + self._frame_bytes, size)] for at in range(0, size, self._frame_bytes))
        return b"".join(_frame(_Frame.DATA, 0, _STREAM, piece) for piece in pieces), size

    @staticmethod
    def ping() -> bytes:
        """Ask whether somebody is there."""
        return _frame(_Frame.PING, 0, 0, bytes(_PING_BYTES))

    @staticmethod
    def cancel() -> bytes:
        """The last words: the call is not wanted any more, nor is the connection."""
        reset = _frame(_Frame.RST_STREAM, 0, _STREAM, struct.pack("!L", _CANCEL))
        return reset + _frame(_Frame.GOAWAY, 0, 0, bytes(8))

    def receive(self, data: bytes, messages: list[bytes]) -> bytes:
        """Read what has arrived.

        Args:
            data: as it came from the connection.
            messages: whole ones are added.

        Returns:
            What to answer at once, often nothing. After the end of the call nothing is read.
        """
        if self.outcome is not None:
            return b""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= _FRAME_HEAD and self.outcome is None:
                size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
                if size > _LARGEST_FRAME:
                    raise _ViolationError("a frame is longer than the largest that we take")
                body = at + _FRAME_HEAD
                if end < body + size:
                    break
                self._on_frame(data, at, body, body + size, messages)
                at = body + size
        except _ViolationError as error:
            self._end(grpc.StatusCode.UNAVAILABLE, f"what listens there does not speak gRPC: {error}")
        self._rest = data[at:] if at else data
        self._report()
        if not self._reply:
            return b""
        reply, self._reply = self._reply, bytearray()
        return bytes(reply)

    def _on_frame(self, data: bytes, head: int, begin: int, end: int, messages: list[bytes]) -> None:
        kind, flags = data[head + 3], data[head + 4]
        stream = int.from_bytes(data[head + 5 : begin], "big") & _LARGEST_WINDOW
        if self._block is not None and kind != _Frame.CONTINUATION:
            raise _ViolationError("a header block is interrupted")
        if not self.answered and kind != _Frame.SETTINGS:
            raise _ViolationError("it does not begin with its settings")
        if kind == _Frame.DATA:
            self._unreported += end - begin
            if flags & _PADDED:
                begin, end = _without_padding(data, begin, end)
            self._on_data(stream, data, begin, end, messages)
            if flags & _END_STREAM:
                self._end(grpc.StatusCode.UNAVAILABLE, "the server ended the stream without a status")
        else:
            self._on_control(kind, flags, stream, data[begin:end])

    def _on_control(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        match kind:
            case _Frame.WINDOW_UPDATE:
                self._on_window(stream, _number(body))
            case _Frame.PING:
                if len(body) != _PING_BYTES:
                    raise _ViolationError("a ping is no ping")
                if not flags & _ACK:
                    self._reply += _frame(_Frame.PING, _ACK, 0, body)
            case _Frame.SETTINGS:
                if not flags & _ACK:
                    self._on_settings(body)
            case _Frame.HEADERS:
                if flags & _PADDED:
                    begin, end = _without_padding(body, 0, len(body))
                    body = body[begin:end]
                self._block = flags, bytearray()
                self._on_block(stream, flags, body[_PRIORITY_BYTES if flags & _PRIORITY else 0 :])
            case _Frame.CONTINUATION:
                self._on_block(stream, flags, body)
            case _Frame.RST_STREAM:
                error = _number(body)
                if stream == _STREAM:
                    self.outcome = of_reset(error)
            case _Frame.GOAWAY:
                self._on_goaway(body)
            case _Frame.PUSH_PROMISE:
                raise _ViolationError("it pushes what nobody asked for")
            case _:  # RFC 9113: others are ignored
                pass

    def _on_data(self, stream: int, data: bytes, begin: int, end: int, messages: list[bytes]) -> None:
        if stream != _STREAM or not self._has_headers:
            raise _ViolationError("data came before an answer")
        if not self._message and end - begin >= _MESSAGE_HEAD:
            after = begin + _MESSAGE_HEAD
            if after + self._message_bytes(data, begin) == end and self.outcome is None:
                messages.append(data[after:end])
                return
        self._message += data[begin:end]
        while len(self._message) >= _MESSAGE_HEAD:
            after = _MESSAGE_HEAD + self._message_bytes(self._message, 0)
            if len(self._message) < after or self.outcome is not None:
                return
            messages.append(bytes(self._message[_MESSAGE_HEAD:after]))
            del self._message[:after]

    def _message_bytes(self, data: bytes | bytearray, at: int) -> int:
        if data[at]:
            raise _ViolationError("a message is compressed, which was not asked for")
        size = int.from_bytes(data[at + 1 : at + _MESSAGE_HEAD], "big")
        if size > MAX_MESSAGE_BYTES:
            text = f"a message has {size} bytes, but {MAX_MESSAGE_BYTES} are taken"
            self._end(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        return size

    def _on_window(self, stream: int, more: int) -> None:
        more &= _LARGEST_WINDOW
        if stream == 0:
            self._shared_window += more
        elif stream == _STREAM:
            self._their_window += more
        if not more or max(self._shared_window, self._their_window) > _LARGEST_WINDOW:
            raise _ViolationError("a window cannot be so large")

    def _on_settings(self, body: bytes) -> None:
        self.answered = True
        if len(body) % 6:
            raise _ViolationError("settings are cut off")
        for name, value in struct.iter_unpack("!HL", body):
            if name == _Setting.INITIAL_WINDOW_SIZE:
                if value > _LARGEST_WINDOW:
                    raise _ViolationError("a window cannot be so large")
                self._their_window += value - self._their_first_window
                self._their_first_window = value
            elif name == _Setting.MAX_FRAME_SIZE:
                if not _LARGEST_FRAME <= value < 1 << 24:
                    raise _ViolationError("frames cannot have that size")
                self._frame_bytes = value
        self._reply += _frame(_Frame.SETTINGS, _ACK, 0, b"")

    def _on_block(self, stream: int, flags: int, part: bytes) -> None:
        if stream != _STREAM or self._block is None:
            raise _ViolationError("headers of a stream that was not opened")
        first_flags, block = self._block
        block += part
        if len(block) > _MOST_HEADER_BYTES:
            raise _ViolationError("headers are too long")
        if not flags & _END_HEADERS:
            return
        self._block = None
        try:
            headers = self._decoder.decode(bytes(block))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise _ViolationError("headers cannot be read") from error
        self._on_headers({str(one[0]): str(one[1]) for one in headers}, ended=bool(first_flags & _END_STREAM))

    def _on_headers(self, headers: dict[str, str], *, ended: bool) -> None:
        if not self._has_headers:
            status = headers.get(":status", "")
            if status.startswith("1"):
                return
            self._has_headers = True
            if "grpc-status" not in headers and (
                status != "200" or not headers.get("content-type", "").startswith("application/grpc")
            ):
                self.outcome = of_http(status)
                return
        if ended:
            self.outcome = of_trailers(headers)

    def _on_goaway(self, body: bytes) -> None:
        if len(body) < 8:
            raise _ViolationError("its farewell is cut off")
        last_stream, error = struct.unpack_from("!LL", body)
        if last_stream & _LARGEST_WINDOW < _STREAM:
            self._end(grpc.StatusCode.UNAVAILABLE, f"the server is going away (HTTP/2 error {error})")

    def _report(self) -> None:
        """Let the server send on; half a window at a time saves most of the frames."""
        if self._unreported * 2 >= _OUR_WINDOW and self.outcome is None:
            more = struct.pack("!L", self._unreported)
            for stream in (0, _STREAM):
                self._reply += _frame(_Frame.WINDOW_UPDATE, 0, stream, more)
            self._unreported = 0

    def _end(self, code: grpc.StatusCode, message: str) -> None:
        if self.outcome is None:
            self.outcome = EngineError(code, message)


class _ViolationError(Exception):
    """The other side does not keep to the protocol."""


def _frame(kind: int, flags: int, stream: int, body: bytes | memoryview) -> bytes:
    head = len(body) << 48 | kind << 40 | flags << 32 | stream
    return b"".join((head.to_bytes(_FRAME_HEAD, "big"), body))


def _header_frames(block: bytes) -> Sequence[bytes]:
    parts = [block[at : at + _LARGEST_FRAME] for at in range(0, len(block), _LARGEST_FRAME)]
    return [
        _frame(
            _Frame.CONTINUATION if at else _Frame.HEADERS,
            _END_HEADERS if part is parts[-1] else 0,
            _STREAM,
            part,
        )
        for at, part in enumerate(parts)
    ]


def _without_padding(data: bytes, begin: int, end: int) -> tuple[int, int]:
    if begin == end or begin + 1 + data[begin] > end:
        raise _ViolationError("a frame is all padding")
    return begin + 1, end - data[begin]


def _number(body: bytes) -> int:
    if len(body) != 4:
        raise _ViolationError("a frame has the wrong size")
    return int.from_bytes(body, "big")
