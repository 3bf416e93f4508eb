"""Messages to requests and events to messages."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.frames_pb2 import Submit
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome.engine.v1.generate_pb2 import SamplingParams as Message
from rhizome_engine.batch import TokenLogprobs
from rhizome_engine.checkpoint.generation import GenerationDefaults
from rhizome_engine.core.events import TokensEvent
from rhizome_engine.core.served_model import default_sampling
from rhizome_engine.core.translate import to_request, to_request_event, to_sampling_params
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import Request
from rhizome_transport.errors import EngineError

RECOMMENDED = SamplingParams(temperature=0.6, top_p=0.9, top_k=50)

numbers = st.floats(width=32)
messages = st.builds(
    Message,
    temperature=st.none() | numbers,
    top_p=st.none() | numbers,
    top_k=st.none() | st.integers(0, 2**32 - 1),
    min_p=st.none() | numbers,
    repetition_penalty=st.none() | numbers,
    frequency_penalty=st.none() | numbers,
    presence_penalty=st.none() | numbers,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), numbers, max_size=3),
    top_logprobs=st.none() | st.integers(0, 2**32 - 1),
)


@given(messages)
def test_any_sampling_message_is_taken_as_it_is_or_refused_with_its_name(message: Message) -> None:
    try:
        params = to_sampling_params(message, RECOMMENDED)
    except EngineError as error:
        assert error.param is not None and error.param.startswith("sampling.")
        return
    for field in Message.DESCRIPTOR.fields:
        if field.name == "logit_bias":
            assert params.logit_bias == dict(message.logit_bias)
        elif message.HasField(field.name):
            assert getattr(params, field.name) == getattr(message, field.name)
        else:
            assert getattr(params, field.name) == getattr(RECOMMENDED, field.name)


def test_zero_is_not_absence() -> None:
    message = Message(temperature=0.0, top_k=0, seed=0)
    params = to_sampling_params(message, RECOMMENDED)
    assert (params.temperature, params.top_k, params.seed, params.top_p) == (0.0, 0, 0, RECOMMENDED.top_p)


def test_the_checkpoint_decides_what_it_speaks_of_and_nothing_else() -> None:
    assert default_sampling(GenerationDefaults()) == SamplingParams()
    chosen = default_sampling(GenerationDefaults(temperature=0.6, top_k=20))
    assert chosen == SamplingParams(temperature=0.6, top_k=20)


def test_a_malformed_traceparent_is_ignored() -> None:
    submit = Submit(request=GenerateRequest(request_id="a"))
    submit.request.token_ids.ids.append(1)
    submit.trace.traceparent = "garbage"
    assert to_request(submit, None, "m", RECOMMENDED).trace is None


def test_an_absent_max_tokens_fills_the_window_and_zero_is_kept_to_be_refused() -> None:
    submit = Submit(request=GenerateRequest(request_id="a"))
    submit.request.token_ids.ids.append(1)
    assert to_request(submit, None, "m", RECOMMENDED).max_tokens is None
    submit.request.stop.max_tokens = 0
    assert to_request(submit, None, "m", RECOMMENDED).max_tokens == 0


def test_log_probabilities_travel_beside_their_tokens() -> None:
    logprobs = [TokenLogprobs(-0.5, [(3, -0.5), (9, -1.5)])]
    event = to_request_event(TokensEvent(Request("a", [1]), [3], logprobs))
    delta = event.response.delta
    assert list(delta.token_ids) == [3]
    assert [(r.token_id, r.logprob) for r in delta.logprobs[0].top] == [(3, -0.5), (9, -1.5)]
    assert not event.final


@pytest.mark.parametrize("param", ["sampling.logit_bias", "stop.token_ids"])
def test_too_many_special_tokens_are_refused(param: str) -> None:
    request = GenerateRequest(request_id="a")
    request.token_ids.ids.append(1)
    if param == "stop.token_ids":
        request.stop.token_ids.extend(range(5000))
    else:
        request.sampling.logit_bias.update(dict.fromkeys(range(5000), 1.0))
    with pytest.raises(EngineError) as caught:
        to_request(Submit(request=request), None, "m", SamplingParams())
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.INVALID_ARGUMENT, param)
