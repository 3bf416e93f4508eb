"""Token ids of a serialised message as an array, without a look at each of them.

    TokenIds = (key length ids)*     ids = 4 bytes each, the lowest first

What is written in another way, one by one for instance, protobuf reads.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_transport.wire import field, field_key, read_varint

TokenArray = NDArray[np.uint32]

_IDS = TokenIds.DESCRIPTOR.fields_by_name["ids"].number
_KEY = field_key(_IDS)
_WIDTH = 4

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
    return len(_packed(message)) // _WIDTH


def unpack_ids(message: bytes) -> TokenArray:
    """The ids of a serialised TokenIds, not to be written to.

    Raises:
        DecodeError: it is none.
    """
    return np.frombuffer(_packed(message), "<u4")


def ids_array(message: TokenIds) -> TokenArray:
    """The ids of a message, not to be written to; a list of them takes fifty times as long."""
    return unpack_ids(message.SerializeToString())


def _packed(message: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    with suppress(DecodeError):  # protobuf says what is wrong, or knows how to read it
        while at < len(message):
            key, at = read_varint(message, at)
            length, at = read_varint(message, at)
            if key != _KEY or length % _WIDTH or at + length > len(message):
                break
            parts.append(message[at : at + length])
            at += length
        else:
            return b"".join(parts)
    return np.array(TokenIds.FromString(message).ids, "<u4").tobytes()
