"""Protobuf's wire form, cut and joined where a message is passed on and only a part of it is read.

    message = field*     field = key value     key = varint of number << 3 | kind

A long prompt is 100 KB of ids: to make numbers of them and to write them again takes a millisecond, to copy
them a hundredth of that.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10


def cut(message: bytes, number: int) -> tuple[bytes, bytes | None]:
    """Take field `number` out of a serialised message; it holds a message, bytes or a packed list.

    Returns:
        The message without it, and what it holds: `None` where it is absent, all of them joined where it
        comes several times, which is how protobuf merges messages and packed lists.

    Raises:
        DecodeError: this is no message, or that field holds one number.
    """
    kept: list[bytes] = []
    found: list[bytes] = []
    at, size = 0, len(message)
    while at < size:
        start = at
        key, at = read_varint(message, at)
        kind = key & 7
        if kind == _DELIMITED:
            length, at = read_varint(message, at)
            content = at
            at += length
        elif kind == _VARINT:
            _, at = read_varint(message, at)
        elif kind in _WIDTHS:
            at += _WIDTHS[kind]
        else:
            raise DecodeError(f"a field has the unknown kind {kind}")
        if at > size:
            raise DecodeError("a field ends after its message")
        if key >> 3 != number:
            kept.append(message[start:at])
        elif kind == _DELIMITED:
            found.append(message[content:at])
        else:
            raise DecodeError(f"field {number} holds a number")
    return b"".join(kept), b"".join(found) if found else None


def field(number: int, *content: bytes) -> bytes:
    """A serialised field that holds a message, bytes or a packed list; `content` is joined."""
    return b"".join((_varint(field_key(number)), _varint(sum(map(len, content))), *content))


def field_key(number: int) -> int:
    """What stands before the length of a field that `field` writes."""
    return number << 3 | _DELIMITED


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends.

    Raises:
        DecodeError: it has no end.
    """
    value, end = 0, min(len(message), at + _LONGEST_VARINT)
    shift = 0
    while at < end:
        byte = message[at]
        at += 1
        if byte < 0x80:
            return value | byte << shift, at
        value |= (byte & 0x7F) << shift
        shift += 7
    raise DecodeError("a number has no end")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
