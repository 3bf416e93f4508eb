"""Depth of JSON, against a parser that counts."""

import json
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_gateway.http.json_depth import json_depth_ok

nasty = st.text(st.sampled_from('[]{}"\\,:/nu é😀'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | nasty,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(nasty, inner, max_size=4),
    max_leaves=30,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_the_depth_is_exact_for_any_json(value, ascii_only, indent):
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    actual = depth(value)
    for limit in range(1, actual + 3):
        assert json_depth_ok(body, limit) == (actual <= limit)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.text('"\\[]{}a', max_size=30))
def test_many_values_are_as_deep_as_the_deepest(depths, noise):
    parts = ["[" * n + json.dumps(noise) + "]" * n for n in depths]
    body = f"[{','.join(parts)}]".encode()
    for limit in (max(depths), max(depths) + 1, max(depths) + 2):
        assert json_depth_ok(body, limit) == (max(depths) + 1 <= limit)


@given(st.binary(max_size=300) | st.text('[]{}"\\', max_size=300).map(str.encode), st.integers(1, 50))
def test_bytes_that_are_no_json_get_an_answer(body, limit):
    assert json_depth_ok(body, limit) in (True, False)


@given(st.text('[]{}"\\,:1 ', max_size=60), st.integers(1, 4))
def test_what_passes_and_is_json_is_not_too_deep(text, limit):
    body = text.encode()
    if json_depth_ok(body, limit):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        assert depth(value) <= limit


MIB = 1 << 20
CHAT = orjson.dumps(
    {"messages": [{"role": "user", "content": 'He said "[x]" {y}\n' * 20} for _ in range(2500)]}
)


@pytest.mark.parametrize(
    ("body", "ok", "most_ms"),
    [
        (orjson.dumps({"input": "word " * (MIB // 5)}), True, 5),
        (b"[" * MIB, False, 50),
        (b"]" * MIB + b"[", True, 50),
        (CHAT, True, 50),
        (b"[" + b"[],{}," * (MIB // 6) + b"1]", True, 50),
        (b"[" + (b"[" * 63 + b"]" * 63 + b",") * (MIB // 127) + b"1]", True, 150),
        (b'["' + b'\\"' * (MIB // 2) + b'"]', True, 50),
        (b'["' * (MIB // 2), False, 50),
    ],
)
def test_a_mebibyte_takes_milliseconds_whatever_is_in_it(body, ok, most_ms):
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        assert json_depth_ok(body, 64) == ok
        best = min(best, time.process_time() - started)
    assert best * 1000 < most_ms
