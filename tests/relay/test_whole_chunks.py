"""A chunk that arrives alone is not parsed: whatever came before and follows, that makes no difference."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_relay import upstream
from rhizome_relay.known_heads import KnownHeads, KnownResponse
from rhizome_relay.picker import Ending
from rhizome_relay.request import Pairs
from rhizome_relay.upstream import Upstream, whole_chunk
from rhizome_testing.compiled_modules import interpreted

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

payloads = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from(
        [b"\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"data: {}\n\n", b"\r\n0\r\n\r\n", b"x" * 300]
    ),
)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    body = draw(payloads)
    size = b"%x" % len(body)
    size = draw(st.sampled_from([size, size, size, size.upper(), b"0" + size, size + b";a=b", size + b" "]))
    return size + b"\r\n" + body + b"\r\n"


endings = st.sampled_from(
    [
        b"",
        b"0\r\n\r\n",
        b"0\r\nx-end: 1\r\n\r\n",
        b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"zz\r\n",
        b"-1\r\nab\r\n",
        b"3\r\nabcde\r\n",
    ]
)


class Transport:
    def __init__(self) -> None:
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None:
        assert high

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Heard:
    """What a receiver is told."""

    def __init__(self) -> None:
        self.body = b""
        self.frames = 0
        self.ended = False
        self.failure: Ending | None = None

    def on_early_hints(self, headers: Pairs) -> None:
        raise AssertionError

    def on_response(
        self, status: int, headers: Pairs, length: int, known: KnownResponse | None = None
    ) -> bool:
        assert status == 200
        return True

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        assert not self.ended
        self.body += b"".join(parts)
        self.ended = ended

    def on_chunk(self, piece: bytes, framed: bytes) -> None:
        assert framed == b"%x\r\n%b\r\n" % (len(piece), piece)
        self.frames += 1
        self.on_data([piece], [], False)

    def on_failure(self, ending: Ending, reason: str) -> None:
        self.failure = ending

    def on_backend_ready(self) -> None:
        raise AssertionError


def hear(arrivals: list[bytes]) -> tuple[Heard, bool]:
    """Feed a connection; what came of it, and whether it may serve another request."""
    connection = Upstream(lambda closed: None, KnownHeads())
    transport = Transport()
    connection.connection_made(cast(Any, transport))
    heard = Heard()
    connection.begin(heard, head_only=False)
    for data in arrivals:
        if transport.aborted:
            break
        connection.data_received(data)
        if heard.ended:
            break
    return heard, connection.release()


@interpreted
@given(
    stream=st.lists(chunks(), max_size=6),
    ending=endings,
    joined=st.sets(st.integers(0, 7)),
    cuts=st.lists(st.integers(0, 600), max_size=3),
)
def test_arrivals_do_not_matter(
    stream: list[bytes], ending: bytes, joined: set[int], cuts: list[int]
) -> None:
    arrivals = [HEAD]
    for index, piece in enumerate([*stream, ending]):
        if index in joined:
            arrivals[-1] += piece
        else:
            arrivals.append(piece)
    for cut in cuts:
        arrivals = [part for arrival in arrivals for part in (arrival[:cut], arrival[cut:])]
    arrivals = [arrival for arrival in arrivals if arrival]
    heard, reusable = hear(arrivals)
    with patch.object(upstream, "whole_chunk", lambda data: b""):
        told, told_reusable = hear(arrivals)
    assert told.frames == 0
    assert (heard.body, heard.ended, heard.failure) == (told.body, told.ended, told.failure)
    assert reusable == told_reusable


def test_events_that_arrive_alone_are_passed_on_as_they_are() -> None:
    events = [b"1a\r\ndata: " + b"x" * 18 + b"\n\n\r\n"] * 3
    heard, _ = hear([HEAD, *events, b"0\r\n\r\n"])
    assert heard.frames == 2  # the first one shows that the body comes in chunks
    assert heard.ended


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\r\n", b"1\r\n\r\n", b"0\r\n\r\n", b"1\r\na", b"1\na\r\n"),
        *(b"1\r\nab\r\n", b"2\r\na\r\n", b"01\r\na\r\n", b"0x1\r\na\r\n", b"+1\r\na\r\n", b"1;x\r\na\r\n"),
        *(b"A\r\n0123456789\r\n", b"1\r\na\r\n1\r\na\r\n"),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert whole_chunk(data) == b""


def test_whole_chunks() -> None:
    assert whole_chunk(b"1\r\na\r\n") == b"a"
    assert whole_chunk(b"a\r\n0123456789\r\n") == b"0123456789"
    assert whole_chunk(b"6\r\na\r\nb\r\n\r\n") == b"a\r\nb\r\n"
