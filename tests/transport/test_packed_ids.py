"""Token ids are read as protobuf reads them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_transport.packed_ids import unpack_ids

IDS = st.one_of(*(st.integers(0, 2**bits - 1) for bits in (7, 14, 21)))
LARGE = st.integers(0, 2**32 - 1)


@given(ids=st.lists(IDS, max_size=2_500) | st.lists(IDS | LARGE, max_size=1_500))
def test_ids_are_read_as_protobuf_reads_them(ids):
    assert unpack_ids(TokenIds(ids=ids).SerializeToString()).tolist() == ids


@pytest.mark.parametrize("edge", [0, 127, 128, 2**14 - 1, 2**14, 2**21 - 1, 2**21, 2**28, 2**32 - 1])
def test_every_length_of_number_is_read_beside_every_other(edge):
    ids = [edge, 0, edge, 200, edge, 20_000, edge] * 300
    assert unpack_ids(TokenIds(ids=ids).SerializeToString()).tolist() == ids


def test_ids_that_come_in_several_lists_or_one_by_one_are_read():
    parts = [list(range(1_500)), [7], list(range(3_000, 3_400))]
    lists = b"".join(TokenIds(ids=part).SerializeToString() for part in parts)
    assert unpack_ids(lists).tolist() == [*parts[0], *parts[1], *parts[2]]
    singly = b"".join(b"\x08" + bytes([one % 128]) for one in range(2_000))
    assert unpack_ids(singly).tolist() == [one % 128 for one in range(2_000)]


@given(packed=st.binary(min_size=2_100, max_size=2_300))
def test_bytes_that_are_no_ids_are_refused_or_read_as_protobuf_does(packed):
    message = b"\x0a" + bytes([len(packed) & 0x7F | 0x80, len(packed) >> 7]) + packed
    try:
        expected = list(TokenIds.FromString(message).ids)
    except DecodeError:
        with pytest.raises(DecodeError):
            unpack_ids(message)
    else:
        assert unpack_ids(message).tolist() == expected
