"""A request in two parts is the request."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_transport.split_request import SplitRequest

INPUTS = st.one_of(
    st.lists(st.integers(0, 2**32 - 1), max_size=300).map(lambda ids: {"token_ids": TokenIds(ids=ids)}),
    st.text(max_size=20).map(lambda text: {"text": text}),
    st.just({}),
)


@given(request_id=st.text(max_size=5), prompt=INPUTS, unknown=st.sampled_from([b"", b"\xfa\x7f\x03new"]))
def test_split_and_joined_it_is_what_it_was(request_id, prompt, unknown):
    whole = GenerateRequest(request_id=request_id, **prompt)
    whole.sampling.temperature = 0.5
    whole.MergeFromString(unknown)
    split = SplitRequest.parse(whole.SerializeToString())
    assert split.head.request_id == request_id
    assert not split.head.HasField("token_ids")
    assert split.token_ids.tolist() == list(whole.token_ids.ids)
    assert GenerateRequest.FromString(split.serialize()) == whole


def test_a_prompt_grows_by_what_is_appended_again_and_again():
    split = SplitRequest.parse(GenerateRequest(token_ids=TokenIds(ids=[1, 2])).SerializeToString())
    split.append([3])
    split = SplitRequest.parse(split.serialize())
    split.append([4, 500])
    assert split.token_ids.tolist() == [1, 2, 3, 4, 500]
    assert GenerateRequest.FromString(split.serialize()).token_ids.ids == [1, 2, 3, 4, 500]


@pytest.mark.parametrize("ids_first", [True, False])
def test_of_two_prompts_the_later_one_counts_as_protobuf_has_it(ids_first):
    parts = [GenerateRequest(token_ids=TokenIds(ids=[1])), GenerateRequest(text="hi")]
    if not ids_first:
        parts.reverse()
    payload = b"".join(part.SerializeToString() for part in parts)
    split = SplitRequest.parse(payload)
    assert GenerateRequest.FromString(split.serialize()) == GenerateRequest.FromString(payload)
    assert (split.prompt is None) is ids_first


def test_bytes_that_are_no_request_are_refused():
    for payload in (b"\xff\xff", b"\x0a\x05ab", GenerateRequest(request_id="x").SerializeToString()[:-1]):
        with pytest.raises(DecodeError):
            SplitRequest.parse(payload)


def test_a_request_that_was_not_split_has_the_same_ids():
    request = GenerateRequest(token_ids=TokenIds(ids=[1, 300, 70_000]))
    whole, split = SplitRequest(request, None), SplitRequest.parse(request.SerializeToString())
    assert whole.token_ids.tolist() == split.token_ids.tolist() == [1, 300, 70_000]
    assert whole.prompt_tokens == split.prompt_tokens == 3
