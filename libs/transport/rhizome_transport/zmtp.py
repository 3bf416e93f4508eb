"""ZMTP 3.1 as a DEALER speaks it: what ZeroMQ's sockets say to each other on one connection.

    greeting   64 bytes: signature, version, mechanism (NULL: the socket's directory says who may connect)
    READY      a command with the kind of socket and, for a ROUTER, how to address it
    then       messages, and now and then PING and PONG

Each command and each part of a message is a frame: flags, size, body; see https://rfc.zeromq.org/spec/37/.
"""

from __future__ import annotations

from typing import Final

GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
"""What both sides say first."""

_SIGNED = GREETING[:1], GREETING[9:10]
_OLDEST_MAJOR = 3
_VERSION, _MECHANISM = 10, slice(12, 32)
_LONG, _COMMAND = 0x02, 0x04
_SHORTEST_HEAD, _LONGEST_HEAD = 2, 9
_MOST_SHORT = 255
_TTL_BYTES = 2
_MOST_CONTEXT = 16


class ZmtpError(Exception):
    """The other side does not speak as we do; the text says what is wrong."""


def message(body: bytes) -> bytes:
    """A message of one part."""
    return _frame(0, body)


def ready(identity: bytes) -> bytes:
    """The command that ends the handshake.

    Args:
        identity: how a ROUTER addresses us; it makes one up when empty.
    """
    properties = ((b"Socket-Type", b"DEALER"), (b"Identity", identity))
    return _command(
        b"READY",
        b"".join(
            len(name).to_bytes(1, "big") + name + len(value).to_bytes(4, "big") + value
            for name, value in properties
        ),
    )


def ping() -> bytes:
    """Ask for a sign of life. How long we may be silent is the other side's own decision."""
    return _command(b"PING", bytes(_TTL_BYTES))


def pong(ping_body: bytes) -> bytes:
    """The answer to a PING, given what was behind its name."""
    return _command(b"PONG", ping_body[_TTL_BYTES : _TTL_BYTES + _MOST_CONTEXT])


class ZmtpReader:
    """Cuts what arrives into messages and commands.

    Args:
        most_bytes: longest frame.

    Attributes:
        greeted: the greeting was read, and is one that we understand.
        missing_bytes: so many more are needed at least before anything is complete.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []
        self._have, self._need = 0, len(GREETING)
        self.greeted = False

    @property
    def missing_bytes(self) -> int:
        """See the class."""
        return self._need - self._have

    def read(self, data: bytes, messages: list[bytes], commands: list[tuple[bytes, bytes]]) -> None:
        """Take more.

        Args:
            data: what arrived.
            messages: get what is complete, part by part.
            commands: get name and body of those that are complete.

        Raises:
            ZmtpError: this is not ZMTP 3 without encryption, or a frame is too large.
        """
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
        end = len(data)
        at = 0
        if not self.greeted:
            if end < self._need:
                self._keep(data)
                return
            _check_greeting(data)
            self.greeted = True
            at = len(GREETING)
        self._need = _SHORTEST_HEAD
        while end - at >= _SHORTEST_HEAD:
            flags, size, begin = data[at], data[at + 1], at + _SHORTEST_HEAD
            if flags & _LONG:
                begin = at + _LONGEST_HEAD
                if begin > end:
                    self._need = _LONGEST_HEAD
                    break
                size = int.from_bytes(data[at + 1 : begin], "big")
                if size > self._most_bytes:
                    raise ZmtpError(f"a frame of {size} bytes is larger than any may be")
            stop = begin + size
            if stop > end:
                self._need = stop - at
                break
            if flags & _COMMAND:
                commands.append(_named(data[begin:stop]))
            else:
                messages.append(data[begin:stop])
            at = stop
        self._keep(data[at:])

    def _keep(self, rest: bytes) -> None:
        self._parts, self._have = [rest] if rest else [], len(rest)


def _frame(flags: int, body: bytes) -> bytes:
    size = len(body)
    if size > _MOST_SHORT:
        return (flags | _LONG).to_bytes(1, "big") + size.to_bytes(8, "big") + body
    return bytes((flags, size)) + body


def _command(name: bytes, body: bytes) -> bytes:
    return _frame(_COMMAND, len(name).to_bytes(1, "big") + name + body)


def _named(command: bytes) -> tuple[bytes, bytes]:
    end = 1 + command[0] if command else 0
    return command[1:end], command[end:]


def _check_greeting(data: bytes) -> None:
    if (data[:1], data[9:10]) != _SIGNED or data[_VERSION] < _OLDEST_MAJOR:
        raise ZmtpError("what listens there does not speak ZMTP 3")
    if data[_MECHANISM].rstrip(b"\0") != b"NULL":
        raise ZmtpError("what listens there wants keys")
