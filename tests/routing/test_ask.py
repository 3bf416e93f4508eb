"""Requests as policies see them."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from rhizome.engine.v1.generate_pb2 import GenerateRequest, Message, Messages, TokenIds
from rhizome_routing.policies.ask import Ask
from rhizome_transport.split_request import SplitRequest


def ask(request: GenerateRequest) -> Ask:
    return Ask.of_generation(SplitRequest.parse(request.SerializeToString()))


def test_a_prompt_of_token_ids_is_the_same_from_a_request_and_from_an_array():
    ids = [one * 97 % 130_000 for one in range(2_000)]
    read = ask(GenerateRequest(token_ids=TokenIds(ids=ids), cache_namespace="n"))
    given = Ask(np.array(ids, np.uint32), namespace="n")
    assert read.prompt_tokens == given.prompt_tokens == 2_000
    assert read.chain(16).hashes == given.chain(16).hashes != []


def test_an_empty_prompt_has_no_prefixes():
    assert ask(GenerateRequest()).prompt_tokens == 0
    assert ask(GenerateRequest(token_ids=TokenIds())).chain(16).hashes == []


def test_a_prompt_that_is_no_list_of_ids_is_told():
    with pytest.raises(DecodeError):
        _ = Ask(b"\xff" * 3_000).prompt_tokens


def test_the_key_is_what_is_given_or_the_tenant_or_the_namespace():
    request = GenerateRequest(cache_namespace="space")
    assert ask(request).affinity_key == "space"
    request.tenant = "tenant"
    assert ask(request).affinity_key == "tenant"
    request.affinity_key = "given"
    assert ask(request).affinity_key == "given"
    assert ask(request).namespace == "space"


def test_conversations_that_begin_alike_have_prefixes_in_common():
    def chain(*turns: str) -> list[int]:
        messages = Messages(messages=[Message(role="user", content=one) for one in turns])
        return ask(GenerateRequest(messages=messages)).chain(16).hashes

    shorter, longer = chain("a" * 2000), chain("a" * 2000, "b" * 2000)
    assert shorter == longer[: len(shorter)]
    assert 0 < len(shorter) < len(longer)
