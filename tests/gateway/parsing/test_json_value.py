import json
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.parsing.outcome import JSON, cut

from rhizome_gateway.parsing.json_value import MAX_DEPTH, MAX_NUMBER_CHARS, JsonValue, Progress

PARTS = ["{", "}", "[", "]", ":", ",", '"', "\\", "\\u12", "aF", '"k"', '{"k":', "0", "1", "-", ".", "e"]
PARTS += ["+", "E", "true", "nul", "null", "NaN", " ", "\n", "\x01", "é", '"a\\n"', "[]", "{}"]


def read(pieces: list[str]) -> tuple[Progress, int]:
    value, consumed = JsonValue(), 0
    for piece in pieces:
        end = value.feed(piece, 0)
        consumed += end
        if end < len(piece):
            break
    return value.progress, consumed


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


@given(value=JSON, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_json_is_read_to_its_end(
    value: object, indent: int | None, ascii_only: bool, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(data.draw(cut(text + ";"))) == (Progress.COMPLETE, len(text))


@given(parts=st.lists(st.sampled_from(PARTS), max_size=12), data=st.data())
@settings(max_examples=1500, deadline=None)
def test_what_is_accepted_is_what_json_accepts(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    progress, consumed = read([text])
    assert read(data.draw(cut(text))) == (progress, consumed)
    if progress is Progress.COMPLETE:
        assert is_json(text[:consumed])
    elif progress is Progress.BROKEN:
        assert not any(is_json(text[:end]) for end in range(consumed + 1, len(text) + 1))
    else:
        assert consumed == len(text)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("[01]", "[0"),
        ("-a", "-"),
        ("1.}", "1."),
        ("tru}", "tru"),
        ('"\t"', '"'),
        ('"\\x"', '"\\'),
        ('"\\u12g4"', '"\\u12'),
        ("[1,]", "[1,"),
        ('{"a" 1}', '{"a" '),
        ('{"a": 1,}', '{"a": 1,'),
        ("'a'", ""),
    ],
)
def test_what_cannot_follow_is_not_consumed(text: str, accepted: str) -> None:
    for pieces in ([text], list(text)):
        assert read(pieces) == (Progress.BROKEN, len(accepted))


def test_depth_and_length_are_bounded() -> None:
    assert read(["[" * MAX_DEPTH + "]" * MAX_DEPTH])[0] is Progress.COMPLETE
    assert read(["[" * (MAX_DEPTH + 1)]) == (Progress.BROKEN, MAX_DEPTH)
    assert read(["[" + "1" * MAX_NUMBER_CHARS + "]"])[0] is Progress.COMPLETE
    assert read(["[" + "1" * (MAX_NUMBER_CHARS + 1)])[0] is Progress.BROKEN
