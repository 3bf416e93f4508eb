"""Whatever a model without preferences says under a grammar's masks, the text conforms."""

import json
import re
from datetime import date

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhizome_grammar.spec import Grammar

PERSON = {
    "type": "object",
    "properties": {
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
        "age": {"type": "integer", "minimum": 7, "maximum": 130},
        "born": {"type": "string", "format": "date"},
        "name": {"type": "string", "maxLength": 12},
        "sex": {"enum": ["f", "m", None, 3]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3},
        "child": {"anyOf": [{"$ref": "#/$defs/child"}, {"type": "null"}]},
    },
    "required": ["zip", "age", "born", "name", "sex", "tags", "child"],
    "additionalProperties": False,
    "$defs": {
        "child": {
            "type": "object",
            "properties": {"kind": {"const": "child"}, "ok": {"type": "boolean"}},
            "required": ["kind", "ok"],
            "additionalProperties": False,
        }
    },
}


def check_person(value):
    assert list(value) == list(PERSON["properties"]), "properties come in the schema's order"
    assert re.fullmatch("[0-9]{5}", value["zip"])
    assert type(value["age"]) is int and 7 <= value["age"] <= 130
    date.fromisoformat(value["born"])
    assert len(value["name"]) <= 12
    assert value["sex"] in ("f", "m", None, 3)
    assert 1 <= len(value["tags"]) <= 3 and all(len(tag) <= 5 for tag in value["tags"])
    child = value["child"]
    assert child is None or (
        list(child) == ["kind", "ok"] and child["kind"] == "child" and child["ok"] in (0, 1)
    )


@pytest.mark.parametrize("force", [False, True], ids=["sampled", "forced"])
@pytest.mark.parametrize("flexible", [False, True], ids=["fixed", "flexible"])
def test_json_schema(speaker, force, flexible):
    grammar = Grammar("json_schema", json.dumps(PERSON), flexible_whitespace=flexible)
    for seed in range(8):
        matcher = speaker.matcher(grammar)
        text = speaker.text(speaker.say(matcher, seed, force=force, most=2000))
        assert matcher.may_end, "the walk was cut off"
        check_person(json.loads(text))
        if not flexible:
            assert text.startswith('{"zip": "')


def test_json_object_is_an_object_of_anything(byte_speaker):
    kinds = set()
    for seed in range(30):
        matcher = byte_speaker.matcher(Grammar("json_object"))
        token_ids = byte_speaker.say(matcher, seed, most=300)
        if matcher.may_end:
            value = json.loads(byte_speaker.text(token_ids))
            assert isinstance(value, dict)
            kinds.add(bool(value))
    assert kinds == {True, False}


REGEXES = [
    r"[0-9]{3}-[a-f]+",
    r"(?:cat|dog|cow){1,4}!?",
    r"[^a-y\x00-\x1f]{0,5}/\\?",
    r"-?(?:0|[1-9][0-9]{0,3})(?:\.[0-9]{1,2})?",
    r"é{2}|語[あ-ん]{1,3}",
    "one\ntwo",
]


@pytest.mark.parametrize("force", [False, True], ids=["sampled", "forced"])
@pytest.mark.parametrize("regex", REGEXES)
def test_regex(speaker, regex, force):
    for seed in range(10):
        matcher = speaker.matcher(Grammar("regex", regex))
        text = speaker.text(speaker.say(matcher, seed, force=force))
        assert matcher.may_end
        assert re.fullmatch(regex, text), text


SUM = """
start: sum
sum: product (("+" | "-") product)*
product: atom ("*" atom)*
atom: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
"""


@pytest.mark.parametrize("force", [False, True], ids=["sampled", "forced"])
def test_lark(speaker, force):
    ended = 0
    for seed in range(10):
        matcher = speaker.matcher(Grammar("lark", SUM))
        text = speaker.text(speaker.say(matcher, seed, force=force))
        if matcher.may_end:
            ended += 1
            assert re.fullmatch(r"[0-9+*()-]+", text)
            assert isinstance(eval(text), int)
    assert ended


@pytest.mark.parametrize("force", [False, True], ids=["sampled", "forced"])
def test_a_grammar_of_parts_of_every_kind(speaker, force):
    parts = (
        ("person", Grammar("json_schema", json.dumps(PERSON))),
        ("date", Grammar("regex", r"[0-9]{4}/[0-9]{2}")),
        ("pet", Grammar("choice", choices=("cat", "dog"))),
        ("sum", Grammar("lark", SUM)),
    )
    grammar = Grammar("lark", 'start: @pet " " @date " " @person', parts=parts)
    for seed in range(5):
        matcher = speaker.matcher(grammar)
        text = speaker.text(speaker.say(matcher, seed, force=force, most=2000))
        assert matcher.may_end
        found = re.fullmatch(r"(cat|dog) [0-9]{4}/[0-9]{2} (.*)", text, re.DOTALL)
        check_person(json.loads(found[2]))


def test_a_special_token_is_named_by_its_id(demo_speaker):
    matcher = demo_speaker.matcher(Grammar("lark", 'start: /[a-z]*/ <[6]> "!"'))
    assert 6 in demo_speaker.allowed(matcher)
    matcher.accept(6)
    assert demo_speaker.text(demo_speaker.say(matcher, 0)) == "!"


@pytest.mark.parametrize("force", [False, True], ids=["sampled", "forced"])
def test_choice(speaker, force):
    choices = ("yes", "yesterday", "no", 'a "quoted"\\ one\x7f\x00', "日本\n🙂")
    said = set()
    for seed in range(40):
        matcher = speaker.matcher(Grammar("choice", choices=choices))
        said.add(speaker.text(speaker.say(matcher, seed, force=force)))
        assert matcher.may_end
    assert said == set(choices)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    choices=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=6
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_texts_can_be_choices_and_each_is_allowed(byte_speaker, choices, seed):
    grammar = Grammar("choice", choices=tuple(choices))
    assert byte_speaker.text(byte_speaker.say(byte_speaker.matcher(grammar), seed)) in choices
    for choice in choices:
        matcher = byte_speaker.matcher(grammar)
        matcher.accept_all(list(choice.encode()))
        assert matcher.may_end


def test_ten_thousand_choices(byte_speaker):
    choices = tuple(f"choice {number * 7919}" for number in range(10_000))
    matcher = byte_speaker.matcher(Grammar("choice", choices=choices))
    assert byte_speaker.text(byte_speaker.say(matcher, 3, force=True)) in choices


def test_padding_and_special_tokens_are_never_allowed(speaker):
    matcher = speaker.matcher(Grammar("regex", r"(?s:.)*"))
    allowed = speaker.allowed(matcher)
    assert set(speaker.eos) <= set(allowed)
    assert max(allowed) < (320 if speaker.vocab_size == 333 else 1106)
    specials = {256, 258, 259} if speaker.vocab_size == 333 else {0, 2, 3, 5, 6, 7}
    assert not specials & set(allowed)
    assert len(allowed) > 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefix=st.integers(0, 12),
    seed=st.integers(0, 999),
    regex=st.sampled_from([*REGEXES, "[ab]*abba(?:x|yz)"]),
)
def test_forced_tokens_spell_what_every_continuation_begins_with(demo_speaker, prefix, seed, regex):
    grammar = Grammar("regex", regex)
    said = demo_speaker.say(demo_speaker.matcher(grammar), seed)[:prefix]
    matcher = demo_speaker.matcher(grammar)
    matcher.accept_all(said)
    forced = _spelled(demo_speaker, matcher.forced_tokens(100))
    for other in range(5):
        continued = demo_speaker.matcher(grammar)
        continued.accept_all(said)
        assert _spelled(demo_speaker, demo_speaker.say(continued, other)).startswith(forced)


def _spelled(speaker, token_ids):
    return b"".join(map(speaker.token_bytes, token_ids))


def test_masks_agree_with_accept(demo_speaker):
    draw = np.random.default_rng(0)
    grammar = Grammar("regex", r"[a-c ]{2,6}(?:\.|é)")
    prefix = demo_speaker.say(demo_speaker.matcher(grammar), 1)[:2]
    matcher = demo_speaker.matcher(grammar)
    matcher.accept_all(prefix)
    allowed = set(demo_speaker.allowed(matcher))
    for token_id in {*allowed, *draw.integers(0, demo_speaker.vocab_size, 100).tolist()}:
        trial = demo_speaker.matcher(grammar)
        trial.accept_all(prefix)
        try:
            trial.accept(token_id)
        except ValueError:
            assert token_id not in allowed
        else:
            assert token_id in allowed
