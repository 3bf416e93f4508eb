import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.parsing.outcome import Outcome, cut, outcome

from rhizome_gateway.parsing.detect import choose_formats
from rhizome_gateway.parsing.formats import TOOL_FORMATS, output_parser
from rhizome_gateway.parsing.response_template import read_response_template

FUNCTION = {"type": "function", "function": "{content}"}
TAGGED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": FUNCTION,
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}
ARRAY: dict[str, Any] = {
    "start_anchor": "<|CHATBOT|>",
    "fields": {
        "content": {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>", "content": "text"},
        "thinking": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>", "content": "text"},
        "tool_calls": {
            "open": "<|START_ACTION|>",
            "close": ["<|END_ACTION|>"],
            "content": "json",
            "transform_each": True,
            "transform": {
                "type": "function",
                "function": {"name": "{tool_name}", "arguments": "{parameters}"},
            },
        },
    },
}
NAMED: dict[str, Any] = {
    "version": 1,
    "start_anchor_pattern": "<assistant>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<function=(?P<name>[^>\n]+)>\s*",
            "close": "</function>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": ["<|end|>", "<|stop|>"]},
    },
}
OUTPUTS = [
    (
        TAGGED,
        "<think>\nHm.</think>\n\nI look.\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": "}"}}\n</tool_call>',
        {"reasoning_content": "Hm.", "content": "I look.", "tool_calls": [("add", {"a": "}"})]},
    ),
    (
        ARRAY,
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
        '    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}},\n'
        '    {"tool_call_id": "1", "tool_name": "add", "parameters": {"a": [2]}}\n]<|END_ACTION|>',
        {"thinking": "Hm.", "tool_calls": [("add", {"a": 1}), ("add", {"a": [2]})]},
    ),
    (ARRAY, "<|START_RESPONSE|>Hello!<|END_RESPONSE|>", {"content": "Hello!"}),
    (
        NAMED,
        'Well: <function=add>{"a": 1}</function><function=add>\n{}</function>',
        {"content": "Well:", "tool_calls": [("add", {"a": 1}), ("add", {})]},
    ),
]


@pytest.mark.parametrize(("template", "text", "message"), OUTPUTS)
def test_output_is_read_as_transformers_reads_it(
    template: dict[str, Any], text: str, message: dict[str, Any]
) -> None:
    chat_parsing = pytest.importorskip("transformers.utils.chat_parsing")
    theirs = chat_parsing.parse_response(text, template, prefix="")
    calls = [call["function"] for call in theirs.get("tool_calls", [])]
    assert [(call["name"], call["arguments"]) for call in calls] == message.get("tool_calls", [])
    formats = read_response_template(template)
    assert formats
    parser = output_parser(formats, {"add"})
    assert parser
    ours = outcome(parser, list(text))
    assert ours.text == message.get("content", "") == theirs.get("content", "").strip()
    thinking = theirs.get("thinking", theirs.get("reasoning_content", ""))
    assert ours.reasoning.strip() == thinking == message.get("thinking", message.get("reasoning_content", ""))
    assert [(called, json.loads(raw)) for called, raw in ours.calls] == message.get("tool_calls", [])


@given(case=st.sampled_from(OUTPUTS), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_text_cut_anywhere_is_the_same(case, data: st.DataObject) -> None:
    template, text, _ = case
    formats = read_response_template(template)
    assert formats
    whole, pieces = output_parser(formats, {"add"}), output_parser(formats, {"add"})
    assert whole and pieces
    assert outcome(pieces, data.draw(cut(text))) == outcome(whole, [text])


def with_call(template: dict[str, Any], **changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(template)
    changed["fields"]["tool_calls"].update(changes)
    return changed


REFUSED: list[object] = [
    "text",
    [],
    {},
    {"fields": {}} | {"version": 2},
    {"fields": {"mood": {"open": "<mood>", "close": "</mood>"}}},
    {"fields": {"thinking": {"open_pattern": "a.*b", "close": "c"}}},
    {"fields": {"thinking": {"open": "<a>", "close": "</a>"}, "reasoning": {"open": "b", "close": "c"}}},
    {"fields": {"thinking": {"open": "<a>", "close": "<a>b"}}},
    {"fields": {"content": {"open_pattern": r"to=(?:user|note)", "close": "<|end|>"}}},
    {"fields": {"content": {"open": "<answer>", "close": "</answer>"}}},
    {"fields": {"content": {}}},
    {"fields": {"tool_calls": "json"}},
    with_call(TAGGED, content="xml-inline", content_args={"tag_pattern": "(?P<key>a)(?P<value>b)"}),
    with_call(TAGGED, content_args={"unquoted_keys": True}),
    with_call(TAGGED, close_pattern="<.*>"),
    with_call(TAGGED, open_pattern=r"(a+)+$"),
    with_call(TAGGED, open_pattern=r"\s*"),
    with_call(TAGGED, open_pattern="<\\"),
    with_call(TAGGED, open_pattern=5),
    with_call(TAGGED, transform={"function": {"name": 5, "arguments": "{a}"}}),
    with_call(TAGGED, transform={"function": {"name": "{content.name}"}}),
    with_call(NAMED, transform=FUNCTION),
    with_call(ARRAY, open=""),
]


@pytest.mark.parametrize("template", REFUSED, ids=str)
def test_a_template_that_is_not_understood_is_refused_as_a_whole(template: object) -> None:
    assert read_response_template(template) is None
    formats = choose_formats("<tool_call>", response_template=template)
    assert formats.tools == TOOL_FORMATS["hermes"]


def test_a_template_that_is_understood_wins_over_markers_elsewhere() -> None:
    formats = choose_formats("[TOOL_CALLS]", response_template=NAMED)
    assert formats.tools and formats.tools.name == "response_template"
    assert formats.visible_markers == {"<function=", ">", "</function>"}
    assert formats.reasoning is None
    by_name = choose_formats("", response_template=NAMED, tool_parser="response-template")
    assert by_name.tools == formats.tools


def test_markers_around_the_answer_are_dropped_without_tools_too() -> None:
    formats = read_response_template(ARRAY)
    assert formats
    parser = output_parser(formats, ())
    assert parser
    text = '<|START_RESPONSE|>Hello!<|END_RESPONSE|><|START_ACTION|>[{"tool_name": "add"}]'
    assert outcome(parser, list(text)) == Outcome('Hello!<|START_ACTION|>[{"tool_name": "add"}]')
    assert parser.visible_markers == {"<|START_THINKING|>", "<|END_THINKING|>"}
