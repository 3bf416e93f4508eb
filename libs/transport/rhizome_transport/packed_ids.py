"""Token ids of a serialised message as an array, without a look at each of them.

    TokenIds = (key length ids)*     ids = 4 bytes each, the lowest first

What is written in another way, one by one for instance, protobuf reads.
"""

from __future__ import annotations

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_transport.wire import field, field_key, read_varint

TokenArray = NDArray[np.uint32]

_IDS = TokenIds.DESCRIPTOR.fields_by_name["ids"].number
_KEY = field_key(_IDS)
_WIDTH = 4
_LONGEST_HEAD = 6
"""A key of one byte, and a length of at most five, as protobuf has it."""
_MOST_PARTS = 64
"""In more, somebody else's, protobuf is faster."""

# The C library maps blocks of 128 KiB and more anew each time, which costs a page fault for each 4 KiB of an
# array, until it sees a larger one freed.
np.empty(1 << 22, np.uint8)


def ids_message(packed: bytes) -> bytes:
    """A serialised TokenIds of ids that are written as it has them."""
    return field(_IDS, packed) if packed else b""


def count_ids(message: bytes) -> int:
    """How many ids a serialised TokenIds has.

    Raises:
        DecodeError: it is none.
    """
    packed = _packed(message)
    return len(TokenIds.FromString(message).ids) if packed is None else len(packed) // _WIDTH


def unpack_ids(message: bytes) -> TokenArray:
    """The ids of a serialised TokenIds, not to be written to.

    Raises:
        DecodeError: it is none.
    """
    packed = _packed(message)
    if packed is None:
        return np.array(TokenIds.FromString(message).ids, "<u4")
    return np.frombuffer(packed, "<u4")


def ids_array(message: TokenIds) -> TokenArray:
    """The ids of a message, not to be written to; a list of them takes fifty times as long."""
    return unpack_ids(message.SerializeToString())


def _packed(message: bytes) -> bytes | memoryview | None:
    """The ids as they stand there; `None` where protobuf has to say what they are, or what is wrong."""
    parts: list[memoryview] = []
    view = memoryview(message)
    at = 0
    while at < len(message) and len(parts) < _MOST_PARTS:
        try:
            length, begin = read_varint(message, at + 1)
        except DecodeError:
            return None
        if (
            message[at] != _KEY
            or length % _WIDTH
            or begin - at > _LONGEST_HEAD
            or begin + length > len(message)
        ):
            return None
        at = begin + length
        parts.append(view[begin:at])
    if at < len(message):
        return None
    if len(parts) == 1 and begin % _WIDTH == 0:  # where it would be aligned as a copy is
        return parts[0]
    return b"".join(parts)
