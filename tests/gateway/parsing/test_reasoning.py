import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.parsing.outcome import Outcome, cut, outcome

from rhizome_gateway.parsing.formats import REASONING_FORMATS, TOOL_FORMATS, OutputFormats, output_parser
from rhizome_gateway.parsing.reasoning import ReasoningParser

THINK = REASONING_FORMATS["think"]
CASES = [
    ("<think>\nHm, 1 < 2.\n</think>\n\nYes.\n", False, "Hm, 1 < 2.\n", "Yes.\n"),
    (" \n<think>Hm.</think>Yes.", False, "Hm.", "Yes."),
    ("\nHm.</think>\nYes.", True, "Hm.", "Yes."),
    ("<think>\nHm.</think>Yes.", True, "Hm.", "Yes."),
    ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
    ("<think>It never ends </thi", False, "It never ends </thi", ""),
    ("It never ends", True, "It never ends", ""),
    ("<thi", True, "<thi", ""),
    ("Use <think>x</think>.", False, "", "Use <think>x</think>."),
    ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
    ("<think><think</think>>", False, "<think", ">"),
    ("\n <thin", False, "", "\n <thin"),
    ("</think>Yes.", True, "", "Yes."),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("text", "inside", "reasoning", "answer"), CASES)
def test_thinking_is_split_from_the_answer(text: str, inside: bool, reasoning: str, answer: str) -> None:
    for pieces in ([text], list(text)):
        result = outcome(ReasoningParser(THINK, starts_inside=inside), pieces)
        assert result == Outcome(answer, reasoning)


@pytest.mark.parametrize("markers", REASONING_FORMATS.values(), ids=REASONING_FORMATS)
def test_every_kind_of_marker_is_understood(markers) -> None:
    text = f"{markers.opening}\nHm.{markers.closing}\nYes."
    assert outcome(ReasoningParser(markers), list(text)) == Outcome("Yes.", "Hm.")


PIECES = st.sampled_from(
    ["<think>", "</think>", "<think", "</th", "\n", " ", "\r\n", "a", "<", ">", "</", "é"]
)


def letters(text: str) -> str:
    """All but white space and markers, also those markers that appear where another one is taken out."""
    text, before = "".join(text.split()), ""
    while text != before:
        text, before = text.replace("<think>", "").replace("</think>", ""), text
    return text


@given(parts=st.lists(PIECES, max_size=16), inside=st.booleans(), data=st.data())
@settings(max_examples=500, deadline=None)
def test_a_text_cut_anywhere_is_the_same(parts: list[str], inside: bool, data: st.DataObject) -> None:
    text = "".join(parts)
    whole = outcome(ReasoningParser(THINK, starts_inside=inside), [text])
    assert outcome(ReasoningParser(THINK, starts_inside=inside), data.draw(cut(text))) == whole
    assert outcome(ReasoningParser(THINK, starts_inside=inside), list(text)) == whole
    # Nothing is lost but markers and white space.
    assert letters(whole.reasoning + whole.text) == letters(text)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_caller_can_count_what_was_thinking(data: st.DataObject) -> None:
    thinking, answer = "<think>\nIt is 1 < 2.</think>", "\nYes, it is."
    parser = ReasoningParser(THINK)
    pushed = 0
    for piece in data.draw(cut(thinking + answer)):
        parser.push(piece)
        pushed += len(piece)
        assert parser.inside == (len("<think>") <= pushed < len(thinking))
        assert parser.reasoning_chars == (min(pushed, len(thinking)) if pushed >= len("<think>") else 0)


def test_thinking_is_shown_at_once() -> None:
    parser, result = ReasoningParser(THINK), Outcome()
    for piece, so_far in [
        ("<think>", ""),
        ("\n", ""),
        ("Hm", "Hm"),
        (" <", "Hm "),
        ("/", "Hm "),
        ("b", "Hm </b"),
    ]:
        result.add(parser.push(piece))
        assert (result.reasoning, result.text) == (so_far, "")


def test_calls_are_read_in_the_answer_and_not_in_the_thinking() -> None:
    formats = OutputFormats(TOOL_FORMATS["hermes"], THINK)
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    text = f"<think>\nI could write {call}.\n</think>\n\n{call}\n"
    for pieces in ([text], list(text)):
        parser = output_parser(formats, {"add"})
        assert parser
        expected = Outcome("", f"I could write {call}.\n", [("add", '{"a": 1}')])
        assert outcome(parser, pieces) == expected
        assert not parser.inside and text[: parser.reasoning_chars].endswith("</think>")


def test_a_prompt_tells_whether_it_opened_the_thinking() -> None:
    formats = OutputFormats(None, THINK)
    assert formats.starts_inside("<|im_start|>assistant\n<think>\n")
    assert not formats.starts_inside("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not formats.starts_inside("<|im_start|>assistant\n")
    assert not OutputFormats().starts_inside("<think>")


def test_hard_text_takes_time_in_proportion_to_its_length() -> None:
    for unit in (" ", "<think>", "<think>\n", "</think", "<thin"):
        took = []
        for length in (25_000, 200_000):
            parser = ReasoningParser(THINK)
            start = time.process_time()
            for character in unit * (length // len(unit)):
                parser.push(character)
            took.append(time.process_time() - start)
        assert took[1] < 24 * took[0] + 0.1
