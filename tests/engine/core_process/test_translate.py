"""Messages to requests and events to messages."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.frames_pb2 import Submit
from rhizome.engine.v1.generate_pb2 import Choices, GenerateRequest, JsonObject, TokenIds
from rhizome.engine.v1.generate_pb2 import Grammar as GrammarMessage
from rhizome.engine.v1.generate_pb2 import SamplingParams as Message
from rhizome_engine.batch import TokenLogprobs
from rhizome_engine.checkpoint.generation import GenerationDefaults
from rhizome_engine.core.events import FinishedEvent, PromptLogprobsEvent, StartedEvent, TokensEvent
from rhizome_engine.core.served_model import default_sampling
from rhizome_engine.core.translate import to_grammar, to_request, to_request_event, to_sampling_params
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import FinishReason, Request, Timings, Usage
from rhizome_grammar.spec import Grammar
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
        elif field.name in ("allowed_token_ids", "bad_token_sequences", "bad_words"):
            continue  # messages and lists of their own, below
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


def test_an_absent_max_tokens_fills_the_window_and_zero_is_not_absence() -> None:
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


def test_log_probabilities_of_the_prompt_and_the_seed_in_use_travel() -> None:
    request = Request("a", [1, 2, 3], SamplingParams(seed=-5))
    event = to_request_event(PromptLogprobsEvent(request, [TokenLogprobs(-2.0, [(8, -0.1)])]))
    assert [one.logprob for one in event.response.prompt_logprobs.logprobs] == [-2.0]
    assert event.response.prompt_logprobs.logprobs[0].top[0].token_id == 8
    assert to_request_event(StartedEvent(request, 3, 0)).response.started.seed == -5


def test_a_finished_request_tells_all_that_it_took() -> None:
    usage = Usage(prompt_tokens=9, completion_tokens=4, cached_tokens=3, preemptions=2, forced_tokens=1)
    timings = Timings(0.25, 0.5, 1.0, 0.75)
    event = FinishedEvent(Request("a", [1]), FinishReason.LENGTH, None, usage, timings)
    finished = to_request_event(event).response.finished
    sent = finished.usage
    assert (sent.preemptions, sent.forced_tokens, sent.cached_tokens) == (2, 1, 3)
    assert finished.timings.time_to_first_token.ToMilliseconds() == 750


def test_every_new_field_reaches_the_request() -> None:
    submit = Submit(request=GenerateRequest(request_id="a", tenant="t", resumed_tokens=1, prompt_logprobs=0))
    submit.request.token_ids.ids.extend([1, 2, 3])
    submit.request.sampling.allowed_token_ids.ids.extend([5, 6])
    submit.request.sampling.bad_token_sequences.add().ids.extend([5, 6])
    request = to_request(submit, None, "m", RECOMMENDED)
    assert (request.tenant, request.resumed_tokens, request.prompt_logprobs) == ("t", 1, 0)
    assert (request.prompt_ids.tolist(), request.num_prompt) == ([1, 2, 3], 2)
    assert request.params.allowed_token_ids == (5, 6)
    assert request.params.bad_words == ((5, 6),)
    assert request.params.top_p == RECOMMENDED.top_p
    assert request.grammar is None


def test_absent_fields_ask_for_nothing() -> None:
    submit = Submit(request=GenerateRequest(request_id="a", cache_namespace="n"))
    submit.request.token_ids.ids.append(1)
    request = to_request(submit, None, "m", RECOMMENDED)
    assert (request.tenant, request.resumed_tokens, request.prompt_logprobs) == ("n", 0, None)
    assert (request.params.allowed_token_ids, request.params.bad_words) == (None, ())


@pytest.mark.parametrize(
    ("message", "grammar"),
    [
        (GrammarMessage(json_schema='{"b": 1, "a": 2}'), Grammar("json_schema", '{"b": 1, "a": 2}')),
        (GrammarMessage(json_object=JsonObject()), Grammar("json_object")),
        (
            GrammarMessage(json_object=JsonObject(), flexible_whitespace=True),
            Grammar("json_object", flexible_whitespace=True),
        ),
        (GrammarMessage(regex="a+"), Grammar("regex", "a+")),
        (GrammarMessage(lark='start: "x"'), Grammar("lark", 'start: "x"')),
        (GrammarMessage(choice=Choices(texts=["b", "a"])), Grammar("choice", choices=("b", "a"))),
        (
            GrammarMessage(
                lark="start: @a @b", parts={"b": GrammarMessage(regex="b"), "a": GrammarMessage(regex="a")}
            ),
            Grammar(
                "lark", "start: @a @b", parts=(("a", Grammar("regex", "a")), ("b", Grammar("regex", "b")))
            ),
        ),
    ],
)
def test_each_kind_of_grammar_is_taken_as_it_is_written(message: GrammarMessage, grammar: Grammar) -> None:
    assert to_grammar(message) == grammar


NESTED = GrammarMessage(lark="start: @a", parts={"a": GrammarMessage(regex="a")})


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (GrammarMessage(), "grammar"),
        (GrammarMessage(json_schema="[1]"), "grammar.json_schema"),
        (GrammarMessage(json_schema="{"), "grammar.json_schema"),
        (GrammarMessage(regex=""), "grammar.regex"),
        (GrammarMessage(lark="start: @a", parts={"a": GrammarMessage()}), "grammar.parts"),
        (GrammarMessage(lark="start: @a", parts={"a": GrammarMessage(regex="")}), "grammar.parts.regex"),
        (GrammarMessage(regex="a", parts={"a": GrammarMessage(regex="a")}), "grammar.regex"),
        (GrammarMessage(lark="start: @a", parts={"a": NESTED}), "grammar.parts"),
        (GrammarMessage(lark="a", parts={f"a{i}": NESTED.parts["a"] for i in range(1025)}), "grammar.parts"),
        (GrammarMessage(choice=Choices()), "grammar.choice"),
    ],
)
def test_a_grammar_that_is_none_is_refused_with_its_field(message: GrammarMessage, param: str) -> None:
    with pytest.raises(EngineError) as caught:
        to_grammar(message)
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.INVALID_ARGUMENT, param)


@pytest.mark.parametrize("param", ["sampling.logit_bias", "stop.token_ids", "sampling.bad_token_sequences"])
def test_too_many_special_tokens_are_refused(param: str) -> None:
    request = GenerateRequest(request_id="a")
    request.token_ids.ids.append(1)
    if param == "stop.token_ids":
        request.stop.token_ids.extend(range(5000))
    elif param == "sampling.logit_bias":
        request.sampling.logit_bias.update(dict.fromkeys(range(5000), 1.0))
    else:
        for _ in range(50):
            request.sampling.bad_token_sequences.add().ids.extend(range(100))
    with pytest.raises(EngineError) as caught:
        to_request(Submit(request=request), None, "m", SamplingParams())
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.INVALID_ARGUMENT, param)


@pytest.mark.parametrize(
    ("fill", "param"),
    [
        (
            lambda r: r.sampling.bad_token_sequences.extend([TokenIds()] * 5000),
            "sampling.bad_token_sequences",
        ),
        (lambda r: r.sampling.allowed_token_ids.ids.extend([1] * 300_000), "sampling.allowed_token_ids"),
        (lambda r: r.token_ids.ids.extend([1] * (2**21 + 1)), "prompt"),
        (lambda r: setattr(r, "tenant", "t" * 257), "tenant"),
        (lambda r: setattr(r, "cache_namespace", "n" * 257), "cache_namespace"),
    ],
)
def test_what_would_cost_others_their_time_or_memory_is_refused_unread(
    fill: Callable[[GenerateRequest], object], param: str
) -> None:
    request = GenerateRequest(request_id="a", token_ids=TokenIds(ids=[1]))
    fill(request)
    with pytest.raises(EngineError, match=r"at most \d+ are taken") as caught:
        to_request(Submit(request=request), None, "m", SamplingParams())
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.INVALID_ARGUMENT, param)
