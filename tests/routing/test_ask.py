"""Requests as policies see them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import GenerateRequest, Message, Messages, TokenIds
from rhizome_routing.policies.ask import Ask, read_token_ids

IDS = st.one_of(*(st.integers(0, 2**bits - 1) for bits in (7, 14, 21, 28)))


@given(
    ids=st.lists(IDS, min_size=513, max_size=700) | st.lists(IDS | st.integers(0, 2**32 - 1), max_size=600)
)
def test_ids_are_read_as_protobuf_reads_them(ids):
    assert read_token_ids(TokenIds(ids=ids)).tolist() == ids


def test_the_key_is_what_is_given_or_the_tenant_or_the_namespace():
    request = GenerateRequest(cache_namespace="space")
    assert Ask.of_generation(request).affinity_key == "space"
    request.tenant = "tenant"
    assert Ask.of_generation(request).affinity_key == "tenant"
    assert Ask.of_generation(request, "given").affinity_key == "given"
    assert Ask.of_generation(request, "given").namespace == "space"


def test_conversations_that_begin_alike_have_prefixes_in_common():
    def chain(*turns: str) -> list[int]:
        messages = Messages(messages=[Message(role="user", content=one) for one in turns])
        return Ask.of_generation(GenerateRequest(messages=messages)).chain(16).hashes

    shorter, longer = chain("a" * 2000), chain("a" * 2000, "b" * 2000)
    assert shorter == longer[: len(shorter)]
    assert 0 < len(shorter) < len(longer)
