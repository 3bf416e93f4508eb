"""The payloads of a stream do not depend on how the network cut it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rhizome_launcher.bench.sse import SseLines

STREAM = (
    b": keep-alive\n\n"
    b'data: {"text": "a"}\n\n'
    b"event: done\r\nid: 7\r\n"
    b'data:{"text": "\xe4\xbd\xa0"}\r\n\r\n'
    b"data: [DONE]\n\n"
)
PAYLOADS = [b'{"text": "a"}', '{"text": "你"}'.encode(), b"[DONE]"]


@given(st.sets(st.integers(0, len(STREAM))))
def test_payloads_are_whole_wherever_the_stream_was_cut(cuts: set[int]) -> None:
    lines, found = SseLines(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        found += lines.feed(STREAM[start:end])
    assert found == PAYLOADS


def test_a_line_without_its_end_is_no_payload_yet() -> None:
    lines = SseLines()
    assert list(lines.feed(b"data: {}")) == []
    assert list(lines.feed(b"\n")) == [b"{}"]
