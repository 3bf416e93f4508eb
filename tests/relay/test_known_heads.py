"""A head that came before is read without the parser, and exactly as the parser reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.relay.conftest import OK, Bed, Call, post
from tests.relay.test_any_chunking import EXAMPLES, Background, cut, pieces

from rhizome_relay.known_heads import PATIENCE, KnownHeads, KnownRequest, KnownResponse
from rhizome_relay.request import RelayRequest
from rhizome_testing.compiled_modules import interpreted

EXTRA = (
    (),
    (b"Authorization: Bearer one", b"Accept: */*"),
    (b"X-Content-Length: 5", b"TE: trailers"),
    (b"Connection: X-A", b"X-A: 1", b"X-A: 2"),
    (b"X-Request-Id: given",),
    (b"Connection: close",),
    (b"Via: 1.1 other",),
)
NASTY = b"}\r\n\r\nPOST /v1/y HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc"
BODIES = st.one_of(st.binary(max_size=120), st.sampled_from([b"", b"x" * 99, b"x" * 100, NASTY]))
REQUESTS = st.tuples(st.sampled_from(EXTRA), BODIES, st.one_of(st.none(), pieces))


class Strangers(KnownHeads[Any]):
    """Nobody is known."""

    def find(self, data: bytes) -> None:
        return None


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    running = Background()
    yield running
    running.stop()


def keep_heads(bed: Bed, tables: tuple[KnownHeads[Any], KnownHeads[Any]]) -> None:
    bed.relay.heads, bed.relay.pools._heads = tables
    bed.relay.pools.close()  # connections keep the table they were made with
    bed.relay.pools._pools.clear()


async def seen(
    bed: Bed, asked: list[tuple[tuple[bytes, ...], bytes, list[int] | None]], answers: list[bytes]
) -> list[tuple[Any, ...]]:
    """What the backend got of each request, and the client of each response."""
    turns = iter(answers * len(asked))

    async def script(call: Call) -> None:
        await call.send(next(turns))

    bed.backend.script = script
    bed.backend.received.clear()
    got: list[tuple[Any, ...]] = []
    peer = await bed.peer()
    for headers, body, sizes in asked:
        raw = post(body, *headers)
        for piece in [raw] if sizes is None else cut(raw, sizes):
            await peer.send(piece)
        response = await peer.read("POST")
        received = bed.backend.received[-1]
        head = [line for line in received.head.split(b"\r\n") if not line.startswith(b"x-request-id")]
        told = [pair for pair in response.headers if pair[0] not in (b"x-request-id", b"server-timing")]
        got.append((head, received.body, response.status, told, response.body))
        if b"Connection: close" in headers:
            assert await peer.closed()
            peer = await bed.peer()
    peer.writer.close()
    return got


@interpreted
@EXAMPLES
@given(asked=st.lists(REQUESTS, min_size=1, max_size=8), lengths=st.lists(st.integers(0, 30), min_size=1))
def test_both_sides_see_what_they_see_without(
    background: Background, asked: list[Any], lengths: list[int]
) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nDate: today\r\n%b: %d\r\nX-A: 1\r\n\r\n%b"
        % (b"Content-Length" if length % 2 else b"content-length", length, b"y" * length)
        for length in lengths
    ]
    keep_heads(background.bed, (KnownHeads(), KnownHeads()))
    known = background.run(seen(background.bed, asked, answers))
    keep_heads(background.bed, (Strangers(), Strangers()))
    assert known == background.run(seen(background.bed, asked, answers))


@interpreted
async def test_a_head_is_parsed_once(bed: Any) -> None:
    running = await bed()
    peer, other = await running.peer(), await running.peer()
    lengths = []
    heads = running.relay.heads
    known = KnownRequest.again

    def count(one: KnownRequest, body: bytes, digits: bytes) -> RelayRequest:
        lengths.append(int(digits))
        return known(one, body, digits)

    KnownRequest.again = count  # type: ignore[method-assign]
    try:
        for size in (5, 1000, 0, 7):
            assert (await peer.ask(post(b"x" * size))).status == 200
        assert (await other.ask(post(b"y"))).status == 200
    finally:
        KnownRequest.again = known  # type: ignore[method-assign]
    assert lengths == [1000, 0, 7, 1]
    assert len(heads._heads) == 1
    assert [len(request.body) for request in running.backend.received] == [5, 1000, 0, 7, 1]


async def test_who_brings_new_heads_all_the_time_is_not_looked_up(bed: Any) -> None:
    running = await bed()
    peer = await running.peer()
    for number in range(3 * PATIENCE):
        assert (await peer.ask(post(b"x", b"X-Number: %d" % number))).status == 200
    assert len(running.relay.heads._heads) == PATIENCE


async def test_the_table_is_bounded(bed: Any) -> None:
    running = await bed()
    for number in range(300):
        peer = await running.peer()
        assert (await peer.ask(post(b"x", b"X-Number: %d" % number))).status == 200
        peer.writer.close()
    assert 0 < len(running.relay.heads._heads) <= 256


def learnt(data: bytes, length: int) -> KnownHeads[KnownResponse]:
    heads: KnownHeads[KnownResponse] = KnownHeads()
    heads.learn(data, length, KnownResponse(200, []))
    return heads


def test_a_message_is_known_only_if_all_of_it_is_there_and_no_more() -> None:
    whole = post(b"abc")
    heads = learnt(whole, 3)
    for body in (b"", b"abc", b"x" * 100, b"\r\n\r\n", NASTY):
        found = heads.find(post(body))
        assert found is not None and found[1:] == (body, b"%d" % len(body))
    assert heads.find(whole[:-1]) is None
    assert heads.find(whole + b"x") is None
    assert heads.find(whole + whole) is None
    assert heads.find(whole[:-5]) is None
    assert heads.find(whole.replace(b": 3", b": 03")) is None
    assert heads.find(whole.replace(b": 3", b": +3")) is None
    assert heads.find(whole.replace(b": 3", b":  3")) is None
    assert heads.find(whole.replace(b"api", b"apl")) is None
    assert heads.find(b"") is None


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"POST / HTTP/1.1\r\nX-Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 3),
        (b"POST / HTTP/1.1\r\nX-Content-Length: 3\r\n\r\nabc", 3),
        (b"GET / HTTP/1.1\r\n\r\nContent-Length: 3\r\n\r\nabc", 3),
        (b"GET / HTTP/1.1\r\n\r\n\r\nContent-Length: 3\r\n\r\nabc", 3),
        (b"POST / HTTP/1.1\r\nContent-Length: 03\r\n\r\nabc", 3),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcd", 3),
        (b"POST / HTTP/1.1\r\nX: %b\r\nContent-Length: 3\r\n\r\nabc" % (b"x" * 5000), 3),
        (b"POST / HTTP/1.1\r\nContent-Length: 3", 3),
        (b"", 0),
        (OK.replace(b"Length: 2", b"Length:2"), 2),
    ],
)
def test_what_could_be_read_in_another_way_is_not_kept(data: bytes, length: int) -> None:
    assert not learnt(data, length)._heads
