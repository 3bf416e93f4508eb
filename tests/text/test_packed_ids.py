"""Packed token ids, held to what protobuf writes and reads."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_text.packed_ids import PackedIds, pack
from rhizome_transport.packed_ids import count_ids, ids_message

IDS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)), max_size=40)


@given(ids=IDS)
def test_they_are_what_protobuf_writes(ids: list[int]) -> None:
    packed = PackedIds(pack(ids))
    message = ids_message(packed.packed)
    assert message == TokenIds(ids=ids).SerializeToString()
    assert len(packed) == count_ids(message) == len(ids)


@given(ids=IDS, place=st.integers(-50, 50))
def test_they_read_as_a_list_does(ids: list[int], place: int) -> None:
    packed = PackedIds(pack(ids))
    assert list(packed) == ids == packed
    assert packed[place:] == ids[place:]
    if -len(ids) <= place < len(ids):
        assert packed[place] == ids[place]
    assert packed != [*ids, 1] and packed != str(ids) and list(reversed(packed)) == ids[::-1]


@given(ids=IDS, more=IDS)
def test_ids_in_several_fields_are_counted_together(ids: list[int], more: list[int]) -> None:
    """As `SplitRequest.append` writes them, or an encoder that does not pack."""
    parts = TokenIds(ids=ids).SerializeToString() + TokenIds(ids=more).SerializeToString()
    assert count_ids(parts + b"\x15\x07\0\0\0") == len(ids) + len(more) + 1


@pytest.mark.parametrize("broken", [b"\x12\x03\0\0\0", b"\x12\x04\x01", b"\x12"])
def test_ids_that_are_cut_off_are_an_error(broken: bytes) -> None:
    with pytest.raises(DecodeError):
        count_ids(broken)
