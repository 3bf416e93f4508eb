"""Messages cut and joined by hand are what protobuf makes of them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.frames_pb2 import ClientFrame, Submit
from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_transport.wire import cut, field, read_varint

REQUEST_ID, TOKEN_IDS, PRIORITY = 1, 3, 9
UNKNOWN = b"\xfa\x7f\x03new\xf9\x7f12345678\xfd\x7f1234"
"""Fields that no release knows: bytes, and numbers of 8 and 4 bytes."""


def request(**fields: object) -> GenerateRequest:
    return GenerateRequest(request_id="r1", token_ids=TokenIds(ids=range(300)), **fields)


def test_a_field_is_cut_out_and_nothing_else():
    whole = request(priority=-5, cache_namespace="n")
    whole.MergeFromString(UNKNOWN)
    rest, found = cut(whole.SerializeToString(), TOKEN_IDS)
    assert found == whole.token_ids.SerializeToString()
    expected = GenerateRequest.FromString(whole.SerializeToString())
    expected.ClearField("token_ids")
    assert GenerateRequest.FromString(rest) == expected
    assert rest.endswith(UNKNOWN)


def test_what_is_absent_is_none_and_what_is_empty_is_empty():
    assert cut(b"", TOKEN_IDS) == (b"", None)
    assert cut(GenerateRequest(request_id="x").SerializeToString(), TOKEN_IDS)[1] is None
    assert cut(GenerateRequest(token_ids=TokenIds()).SerializeToString(), TOKEN_IDS) == (b"", b"")


def test_what_comes_twice_is_merged():
    twice = b"".join(
        GenerateRequest(token_ids=TokenIds(ids=ids)).SerializeToString() for ids in ([1, 2], [3])
    )
    _, found = cut(twice, TOKEN_IDS)
    assert found is not None
    assert (
        TokenIds.FromString(found) == GenerateRequest.FromString(twice).token_ids == TokenIds(ids=[1, 2, 3])
    )


def test_fields_that_are_joined_make_a_message():
    inner, trace = request(), Submit(trace={"traceparent": "00-ab"})
    payload = field(2, field(1, inner.SerializeToString()), trace.SerializeToString())
    trace.request.CopyFrom(inner)
    assert ClientFrame.FromString(payload) == ClientFrame(submit=trace)


@given(value=st.integers(0, 2**64 - 1))
def test_numbers_are_read_as_protobuf_writes_them(value):
    signed = value - 2**64 if value >= 2**63 else value
    payload = GenerateRequest(sampling={"seed": signed}).SerializeToString()
    _, sampling = cut(payload, 6)
    assert sampling is not None
    _, at = read_varint(sampling, 0)
    assert read_varint(sampling, at) == (value, len(sampling))


@pytest.mark.parametrize(
    "broken",
    [b"\x1a", b"\x1a\x05ab", b"\x80", b"\x09abc", b"\x1b", b"\x80" * 11 + b"\1", b"\x18\x01"],
    ids=["no length", "too short", "no end", "no 8 bytes", "group", "too long a number", "a number"],
)
def test_bytes_that_are_no_message_are_refused(broken):
    with pytest.raises(DecodeError):
        cut(broken, TOKEN_IDS)
