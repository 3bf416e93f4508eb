import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.parsing.corpus import CORPUS, NAMES, Written
from tests.gateway.parsing.outcome import ARGUMENTS, Outcome, cut, outcome

from rhizome_gateway.parsing.base import OutputParser
from rhizome_gateway.parsing.formats import TOOL_FORMATS

FORMATS = sorted(TOOL_FORMATS)
JSON_FORMATS = [name for name in FORMATS if TOOL_FORMATS[name].notation]


def parser(format_name: str, **options: Any) -> OutputParser:
    return TOOL_FORMATS[format_name].parser(NAMES, **options)


@pytest.mark.parametrize("written", CORPUS, ids=lambda written: f"{written.format}: {written.text[:40]}")
def test_realistic_output_is_understood(written: Written) -> None:
    result = outcome(parser(written.format), [written.text])
    assert (result.text, tuple(result.calls)) == (written.shown, written.calls)
    assert outcome(parser(written.format), list(written.text)) == result
    for _, arguments in result.calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("written", CORPUS, ids=lambda written: f"{written.format}: {written.text[:40]}")
def test_an_answer_may_end_anywhere(written: Written) -> None:
    whole = outcome(parser(written.format), [written.text])
    for end in range(len(written.text)):
        beginning = outcome(parser(written.format), [written.text[:end]])
        assert outcome(parser(written.format), list(written.text[:end])) == beginning
        assert [name for name, _ in beginning.calls] == [name for name, _ in whole.calls][
            : len(beginning.calls)
        ]
        for (_, so_far), (_, arguments) in zip(beginning.calls, whole.calls, strict=False):
            assert arguments.startswith(so_far)
        if not beginning.calls:
            assert beginning.text == written.text[:end]


@given(written=st.sampled_from(CORPUS), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_text_cut_anywhere_is_the_same(written: Written, data: st.DataObject) -> None:
    pieces = data.draw(cut(written.text))
    assert outcome(parser(written.format), pieces) == outcome(parser(written.format), [written.text])


PIECES = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"),
    *("<|python_start|>", "<|python_end|>", "<tool", "[TOOL_", "[add(", "add(", "a=", "add", "nope"),
    *('"name"', '"add"', '"arguments"', '"parameters"', '"type"', '"function"', '{"name": "add"'),
    *("{", "}", "[", "]", "(", ")", ":", ",", ";", " ", "\n", '"', "'", "\\", "1", "-", "e", "."),
    *("tru", "true", "null", "é", '{"name": "add", "arguments": {'),
]  # fmt: skip


@given(name=st.sampled_from(FORMATS), parts=st.lists(st.sampled_from(PIECES), max_size=30), data=st.data())
@settings(max_examples=1000, deadline=None)
def test_garbage_cut_anywhere_is_the_same_and_never_raises(
    name: str, parts: list[str], data: st.DataObject
) -> None:
    text, parallel = "".join(parts), data.draw(st.booleans())
    whole = outcome(parser(name, parallel=parallel), [text])
    assert outcome(parser(name, parallel=parallel), data.draw(cut(text))) == whole
    assert outcome(parser(name, parallel=parallel), list(text)) == whole
    assert parallel or len(whole.calls) <= 1
    if not whole.calls:
        assert whole.text == text


@given(name=st.sampled_from(FORMATS), text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_text_without_calls_comes_out_whole(name: str, text: str) -> None:
    assert outcome(parser(name), list(text)) == Outcome(text=text)


WRITERS: dict[str, Callable[[list[str]], str]] = {
    "hermes": lambda raw: "\n".join(
        f'<tool_call>\n{{"name": "add", "arguments": {each}}}\n</tool_call>' for each in raw
    ),
    "llama3_json": lambda raw: "; ".join(f'{{"name": "add", "parameters": {each}}}' for each in raw),
    "mistral": lambda raw: "".join(f"[TOOL_CALLS]add{each}" for each in raw),
    "mistral array": lambda raw: (
        "[TOOL_CALLS][" + ", ".join(f'{{"name": "add", "arguments": {each}}}' for each in raw) + "]"
    ),
}


@given(
    name=st.sampled_from(sorted(WRITERS)),
    arguments=st.lists(ARGUMENTS, min_size=1, max_size=3),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_json_arguments_come_out_as_they_were_written(
    name: str, arguments: list[dict[str, Any]], data: st.DataObject
) -> None:
    indent, ascii_only = data.draw(st.sampled_from([None, 1])), data.draw(st.booleans())
    raw = [json.dumps(each, indent=indent, ensure_ascii=ascii_only) for each in arguments]
    pieces = data.draw(cut(WRITERS[name](raw)))
    result = outcome(parser(name.split()[0]), pieces)
    assert result == Outcome(calls=[("add", each) for each in raw])
    assert [json.loads(each) for _, each in result.calls] == arguments


@given(
    arguments=st.lists(
        st.dictionaries(st.from_regex("[a-z]{1,5}_", fullmatch=True), ARGUMENTS, max_size=3),
        min_size=1,
        max_size=3,
    ),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_python_arguments_become_the_same_json(arguments: list[dict[str, Any]], data: st.DataObject) -> None:
    calls = [f"add({', '.join(f'{key}={value!r}' for key, value in each.items())})" for each in arguments]
    result = outcome(parser("pythonic"), data.draw(cut(f"[{', '.join(calls)}]")))
    assert result.text == ""
    assert [json.loads(each) for _, each in result.calls] == arguments


@pytest.mark.parametrize("name", JSON_FORMATS)
def test_arguments_stream_while_the_model_writes_them(name: str) -> None:
    text = WRITERS[name](['{"city": "Berlin", "days": 3}'])
    streaming, result = parser(name), Outcome()
    for end in range(text.index("Berlin") + 6):
        result.add(streaming.push(text[end]))
    assert result.calls == [("add", '{"city": "Berlin')]


@pytest.mark.parametrize("name", JSON_FORMATS)
def test_a_call_broken_in_its_arguments_keeps_what_the_model_wrote(name: str) -> None:
    text = WRITERS[name](['{"a": 1, b: 2}'])
    result = outcome(parser(name), list(text))
    assert result.text == ""
    [(called, arguments)] = result.calls
    assert called == "add" and arguments.startswith('{"a": 1, b: 2}')
    assert "<" not in arguments


def test_a_broken_call_ends_where_the_next_begins() -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": 1,}}<tool_call>{"name": "add"}</tool_call>!'
    assert outcome(parser("hermes"), list(text)) == Outcome("!", "", [("add", '{"a": 1,}}'), ("add", "{}")])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "unknown", "parameters": {}}',
        '{"name": "add", "parameters": [1]}',
        '{"name": "add", "parameters": null}',
        '{"name": "add", "name": "add", "parameters": {}}',
        '{"name": 5, "parameters": {}}',
        '{"parameters": {}}',
        '{"parameters": {"a": 1}, "name": "nope"}',
        '{"name": "add",}',
        '{"type": "object", "name": "add", "parameters": {}}',
        '{"type": "function", "function": {"function": {"name": "add"}}}',
        '{"title": "a", "name": "add", "parameters": {}}',
        '{"na\\qme": 1}',
        '{"name": "' + "x" * 1000 + '"}',
        '{"function": 1}',
        "{'name': 'add'}",
        "{}",
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert outcome(parser("llama3_json"), list(text)) == Outcome(text=text)
    assert outcome(parser("llama3_json"), [text]) == Outcome(text=text)


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    streaming, result = parser("llama3_json"), Outcome()
    result.add(streaming.push('{"na'))
    assert result.text == ""
    result.add(streaming.push('med": '))
    assert result.text == '{"named":'
    result.add(streaming.push('{"name": "add", "parameters": {}}'))
    assert result == Outcome(text='{"named": {"name": "add", "parameters": {}}')


def test_white_space_is_held_back_only_until_it_is_known_to_be_text() -> None:
    streaming, result = parser("hermes"), Outcome()
    for piece, shown in [
        ("a\n", "a"),
        ("\n", "a"),
        ("b <", "a\n\nb"),
        ("c", "a\n\nb <c"),
        (" ", "a\n\nb <c"),
    ]:
        result.add(streaming.push(piece))
        assert result.text == shown
    result.add(streaming.finish())
    assert result.text == "a\n\nb <c "


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_without_parallel_calls_only_the_first_is_given_out(name: str) -> None:
    text = WRITERS[name](['{"a": 1}', '{"a": 2}', '{"a": 3}'])
    single = parser(name.split()[0], parallel=False)
    assert outcome(single, list(text)) == Outcome(calls=[("add", '{"a": 1}')])


def test_without_parallel_calls_text_after_them_stays() -> None:
    single = parser("pythonic", parallel=False)
    assert outcome(single, list("[add(a=1), add(a=2)]!")) == Outcome("!", "", [("add", '{"a": 1}')])


LONG = 200_000
HARD: list[tuple[str, Callable[[int], str]]] = [
    ("hermes", lambda n: " " * n),
    ("hermes", lambda n: "a " * (n // 2)),
    ("hermes", lambda n: "<tool_call" * (n // 10)),
    ("hermes", lambda n: "<tool_call>" * (n // 11)),
    ("hermes", lambda n: "<tool_call>" + '{"name":' * (n // 8)),
    ("hermes", lambda n: '<tool_call>{"x": ' + '{"a":' * (n // 5)),
    ("hermes", lambda n: '<tool_call>{"name": "add", "arguments": {x' + "</tool" * (n // 6)),
    ("mistral", lambda n: "[TOOL_CALLS][" * (n // 13)),
    ("mistral", lambda n: "[TOOL_CALLS]" + "a" * n),
    ("mistral", lambda n: "[TOOL_CALLS]add" + "[CALL_ID]" * (n // 9)),
    ("mistral", lambda n: "[TOOL_CALLS]add[CALL_ID]" + "a" * n),
    ("llama3_json", lambda n: " " * n),
    ("llama3_json", lambda n: '{"parameters": {"a": "' + "x" * n),
    ("llama3_json", lambda n: '{"name": "add", "parameters": {"a": "' + "\\\\" * (n // 2)),
    ("llama3_json", lambda n: '{"name": "add", "parameters": {"a": ' + "[" * n),
    ("llama3_json", lambda n: '{"name": "add", "parameters": {"a": ' + "1" * n),
    ("llama3_json", lambda n: '{"name": "add", "parameters": {}}' + ";" * n),
    ("llama3_json", lambda n: '{"name": "add", "parameters": {}};' * (n // 34)),
    ("pythonic", lambda n: "[add(a=" + "[" * n),
    ("pythonic", lambda n: "[add(a='" + "\\'" * (n // 2)),
    ("pythonic", lambda n: "[add(a='" + "a" * n + "')]"),
    ("pythonic", lambda n: "[" + "add(a=1)," * (n // 9)),
    ("pythonic", lambda n: "[" + "a" * n),
    ("pythonic", lambda n: "[add(a=" + "-" * n + "1)]"),
]


def seconds(name: str, pieces: list[str]) -> float:
    tried = parser(name)
    start = time.process_time()
    for piece in pieces:
        tried.push(piece)
    tried.finish()
    return time.process_time() - start


@pytest.mark.parametrize(("name", "text"), HARD)
def test_hard_text_takes_time_in_proportion_to_its_length(name: str, text: Callable[[int], str]) -> None:
    long, short = text(LONG), text(LONG // 8)
    # Eight times the text; it would be 64 times the work, were it quadratic.
    assert seconds(name, list(long)) < 24 * seconds(name, list(short)) + 0.1
    assert seconds(name, [long]) < 24 * seconds(name, [short]) + 0.1
