"""Grammars through the whole core, on a real model: what comes out conforms, whatever happens around it."""

import json
import re

import pytest
import torch

from rhizome_engine import LLM, SamplingParams
from rhizome_engine.core.events import FailedEvent, FinishedEvent, TokensEvent
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_grammar.spec import Grammar
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_transport.errors import EngineError

PERSON = Grammar(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 6}, "member": {"type": "boolean"}},
            "required": ["name", "member"],
            "additionalProperties": False,
        }
    ),
)
COLOUR = Grammar("choice", choices=("red", "reddish", "blue"))
DATE = Grammar("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
WARM = SamplingParams(temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_llama_checkpoint(tmp_path_factory.mktemp("model"), LlamaShape(), seed=4)


@pytest.fixture(scope="module", params=[False, True], ids=["in_turn", "overlap"])
def llm(checkpoint, request):
    config = SchedulerConfig(max_batch_size=4, overlap=request.param)
    return LLM(checkpoint, device="cpu", num_pages=256, scheduler=config)


def test_every_answer_conforms(llm):
    answers = llm.generate(
        [f"person {number}" for number in range(6)],
        SamplingParams(temperature=1.5, seed=2),
        grammar=PERSON,
        max_tokens=200,
    )
    for answer in answers:
        person = json.loads(answer.text)
        assert list(person) == ["name", "member"] and isinstance(person["member"], bool)
        assert len(person["name"]) <= 6 and answer.finish_reason == "stop"
    colours = llm.generate(["a"], SamplingParams(temperature=2.0, seed=2), n=24, grammar=COLOUR)
    assert {"reddish", "blue"} <= {answer.text for answer in colours} <= {"red", "reddish", "blue"}
    dates = llm.generate(["day", "night"], SamplingParams(temperature=0.0), grammar=DATE)
    assert all(re.fullmatch(DATE.text, answer.text) for answer in dates)
    parts = (("colour", COLOUR), ("person", PERSON))
    both = Grammar("lark", 'start: "<" @colour "> " @person', parts=parts)
    for answer in llm.generate(["a", "b"], SamplingParams(temperature=1.5, seed=3), grammar=both):
        colour, person = re.fullmatch(r"<(\w+)> (.*)", answer.text).groups()
        assert colour in COLOUR.choices and list(json.loads(person)) == ["name", "member"]


def test_forced_tokens_need_no_forward_pass_and_change_nothing(llm):
    steps = llm.core.load().totals.steps
    skipping = llm.generate("somebody", WARM, grammar=PERSON, max_tokens=200)[0]
    steps_skipping = llm.core.load().totals.steps - steps
    # Log probabilities need a forward pass per token, so nothing is skipped.
    watched = SamplingParams(temperature=1.0, seed=5, top_logprobs=0)
    stepwise = llm.generate("somebody", watched, grammar=PERSON, max_tokens=200)[0]
    assert skipping.text == stepwise.text
    assert stepwise.usage.forced_tokens == 0
    assert skipping.usage.forced_tokens >= len('{"name": "", "member": ') // 2
    assert steps_skipping <= skipping.usage.completion_tokens - skipping.usage.forced_tokens + 3


def test_a_constrained_answer_does_not_depend_on_its_neighbours(llm):
    alone = llm.generate("somebody", WARM, grammar=PERSON, max_tokens=200)[0].text
    llm.core.flush_cache()
    tokens = []
    llm.core.add(Request("free", list(range(40)), max_tokens=60, ignore_eos=True))
    for _ in range(3):
        llm.core.step()
    ids = llm.tokenizer.encode("somebody", add_special_tokens=True)
    llm.core.add(Request("bound", ids, WARM, grammar=PERSON, max_tokens=200))
    while llm.core.has_work:
        for event in llm.core.step():
            if isinstance(event, TokensEvent) and event.request.request_id == "bound":
                tokens += event.token_ids
    assert llm.tokenizer.decode(tokens) == alone


def test_a_resumed_answer_goes_on_where_the_grammar_stood(llm):
    whole = llm.generate("somebody", WARM, grammar=PERSON, max_tokens=200)[0]
    prompt = llm.tokenizer.encode("somebody", add_special_tokens=True)
    for cut in (1, 7, len(whole.token_ids) - 1):
        resumed = Request(
            "resumed",
            [*prompt, *whole.token_ids[:cut]],
            WARM,
            grammar=PERSON,
            max_tokens=200,
            resumed_tokens=cut,
        )
        llm.core.add(resumed)
        rest = []
        while llm.core.has_work:
            for event in llm.core.step():
                if isinstance(event, TokensEvent):
                    rest += event.token_ids
                if isinstance(event, FinishedEvent):
                    assert event.usage.completion_tokens == whole.usage.completion_tokens
        assert whole.token_ids[:cut] + rest == whole.token_ids


def test_a_grammar_that_cannot_be_compiled_fails_that_request_only(llm):
    llm.core.add(Request("good", [1, 2, 3], WARM, grammar=COLOUR, max_tokens=20))
    llm.core.add(Request("bad", [1, 2, 3], WARM, grammar=Grammar("regex", "((("), max_tokens=20))
    llm.core.add(Request("free", [1, 2, 3], WARM, max_tokens=5, ignore_eos=True))
    ends = {}
    while llm.core.has_work:
        for event in llm.core.step():
            if isinstance(event, FinishedEvent | FailedEvent):
                ends[event.request.request_id] = event
    assert isinstance(ends["bad"], FailedEvent)
    assert (ends["bad"].error.code.name, ends["bad"].error.param) == ("INVALID_ARGUMENT", "grammar")
    assert "unclosed" in ends["bad"].error.message
    assert isinstance(ends["good"], FinishedEvent) and isinstance(ends["free"], FinishedEvent)


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled(llm):
    llm.core.add(Request("bound", [1, 2, 3], WARM, grammar=Grammar("regex", "[a-z]{3,9}x"), max_tokens=20))
    assert llm.core.cancel("bound")
    events = llm.core.step()
    assert [type(event) for event in events] == [FinishedEvent]
    assert not llm.core.has_work
    llm.core.check_conservation()


def test_forced_tokens_are_no_way_around_other_bans(llm):
    yes = Grammar("choice", choices=("yes",))
    assert llm.generate("x", WARM, grammar=yes)[0].text == "yes"
    last = llm.tokenizer.encode("s")[-1]
    for params in (SamplingParams(bad_words=((last,),)), SamplingParams(allowed_token_ids=(last,))):
        with pytest.raises(EngineError, match="no token may come next"):
            llm.generate("x", params, grammar=yes)


def test_what_excludes_every_token_is_an_error_of_that_request(llm):
    nothing = SamplingParams(allowed_token_ids=(5,), bad_words=((5,),))
    with pytest.raises(EngineError, match="no token may come next"):
        llm.generate("x", nothing, max_tokens=3)
    assert llm.generate("x", WARM, max_tokens=3, ignore_eos=True)[0].usage.completion_tokens == 3
