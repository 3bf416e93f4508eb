"""Token ids are read as protobuf reads them."""

from __future__ import annotations

import struct

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_transport import packed_ids
from rhizome_transport.packed_ids import count_ids, unpack_ids

IDS = st.lists(st.integers(0, 300) | st.integers(0, 2**32 - 1), max_size=40)


@given(ids=IDS)
def test_ids_are_read_as_protobuf_reads_them(ids):
    message = TokenIds(ids=ids).SerializeToString()
    assert unpack_ids(message).tolist() == ids
    assert count_ids(message) == len(ids)


@given(parts=st.lists(IDS, max_size=4))
def test_ids_that_come_in_several_lists_or_one_by_one_are_read(parts):
    everything = [one for part in parts for one in part]
    lists = b"".join(TokenIds(ids=part).SerializeToString() for part in parts)
    assert unpack_ids(lists).tolist() == everything
    singly = b"".join(b"\x15" + struct.pack("<I", one) for one in everything)
    assert unpack_ids(lists + singly).tolist() == everything * 2


@given(
    message=st.binary(max_size=12)
    | st.lists(
        st.sampled_from([b"\x12", b"\x15", b"\x0a", b"\x04", b"\x08", b"\x07", b"\x84\0"]), max_size=14
    ).map(b"".join)
)
def test_bytes_that_are_no_ids_are_refused_or_read_as_protobuf_does(message):
    try:
        expected = list(TokenIds.FromString(message).ids)
    except DecodeError:
        for read in (unpack_ids, count_ids):
            with pytest.raises(DecodeError):
                read(message)
    else:
        assert unpack_ids(message).tolist() == expected
        assert count_ids(message) == len(expected)


def test_a_long_prompt_that_grew_is_read_without_a_number_in_between(monkeypatch):
    grown = TokenIds(ids=range(32_768)).SerializeToString() + TokenIds(ids=[7]).SerializeToString()
    monkeypatch.setattr(packed_ids, "TokenIds", None)
    assert unpack_ids(grown).tolist() == [*range(32_768), 7]
