"""Two halves of an answer are one; `tests/proxy/service/test_resume.py` has the whole of it."""

from __future__ import annotations

import pytest

from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    Finished,
    GenerateRequest,
    GenerateResponse,
    Started,
    TokenDelta,
    TokenIds,
    TokenLogprob,
)
from rhizome_transport.continuation import Continuation
from rhizome_transport.split_request import SplitRequest


def split(**fields: object) -> SplitRequest:
    request = GenerateRequest(**{"token_ids": TokenIds(ids=[1, 2, 3]), **fields})
    return SplitRequest.parse(request.SerializeToString())


def started(seed: int = 7, cached: int = 2) -> bytes:
    return GenerateResponse(
        started=Started(prompt_tokens=3, cached_tokens=cached, seed=seed)
    ).SerializeToString()


def delta(*ids: int) -> bytes:
    return GenerateResponse(delta=TokenDelta(token_ids=ids)).SerializeToString()


def test_the_request_asks_for_the_rest_with_the_seed_in_use():
    request = split(stop={"max_tokens": 5})
    continuation = Continuation(request)
    for event in (started(), delta(4), delta(5, 600)):
        assert continuation.take(event) is event
    assert continuation.streaming
    assert continuation.resume()
    rest = GenerateRequest.FromString(request.serialize())
    assert list(rest.token_ids.ids) == [1, 2, 3, 4, 5, 600]
    assert (rest.resumed_tokens, rest.sampling.seed, rest.stop.max_tokens) == (3, 7, 5)
    assert not continuation.streaming


def test_the_second_half_begins_unseen_and_its_end_counts_the_first():
    continuation = Continuation(split())
    continuation.take(started(cached=2))
    continuation.take(delta(4))
    continuation.resume()
    assert continuation.take(started(cached=4)) is None
    finished = Finished(reason=FINISH_REASON_STOP)
    finished.usage.cached_tokens = 4
    finished.timings.decode_time.FromSeconds(99)
    told = continuation.take(GenerateResponse(finished=finished).SerializeToString())
    assert told is not None
    whole = GenerateResponse.FromString(told).finished
    assert (whole.reason, whole.usage.cached_tokens) == (FINISH_REASON_STOP, 2)
    assert whole.timings.decode_time.ToSeconds() < 99


def test_when_nothing_is_left_the_end_is_made_up():
    continuation = Continuation(split(stop={"max_tokens": 2}))
    for event in (started(), delta(4), delta(5)):
        continuation.take(event)
    assert not continuation.resume()
    end = GenerateResponse.FromString(continuation.end()).finished
    assert end.reason == FINISH_REASON_LENGTH
    assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.cached_tokens) == (3, 2, 2)


def test_deltas_with_log_probabilities_are_looked_at_each():
    request = split(sampling={"top_logprobs": 0})
    continuation = Continuation(request)
    event = GenerateResponse(delta=TokenDelta(token_ids=[4], logprobs=[TokenLogprob(logprob=-1)]))
    payload = event.SerializeToString()
    assert continuation.take(payload) is payload
    assert not continuation.streaming
    continuation.resume()
    assert request.token_ids.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "fields",
    [{"no_resume": True}, {"text": "hi"}, {"stop": {"strings": ["x"]}}, {"echo": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_what_tokens_alone_do_not_tell_cannot_go_on(fields):
    request = GenerateRequest(**fields)
    if "text" not in fields:
        request.token_ids.ids.append(1)
    assert not Continuation(SplitRequest.parse(request.SerializeToString())).possible
    assert Continuation(split()).possible
