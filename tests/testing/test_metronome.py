"""The engine that measurements rest on must itself be right about what it counts."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome.engine.v1.frames_pb2 import EngineFrame
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_LENGTH, GenerateRequest
from rhizome_testing.metronome import MARKER, Metronome, Pace, marked_words
from rhizome_testing.metronome_peer import FramePeer
from rhizome_testing.running_stack import DEMO_MODEL
from rhizome_text.tokenizer import Tokenizer

WORDS = (11, 12, 13)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 6)),
        st.tuples(st.just("tick"), st.integers(1, 3)),
        st.tuples(st.just("allow"), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
    ),
    max_size=40,
)


def a_request(request_id: str, max_tokens: int) -> GenerateRequest:
    request = GenerateRequest(request_id=request_id)
    request.token_ids.ids.extend([1, 2])
    request.stop.max_tokens = max_tokens
    return request


def events_by_request(frames: list[EngineFrame]) -> dict[str, list]:
    events: dict[str, list] = {}
    for frame in frames:
        for event in frame.events:
            events.setdefault(event.request_id, []).append(event)
    return events


def tokens_of(events: list) -> list[int]:
    return [token for event in events for token in event.response.delta.token_ids]


class Table:
    """A peer whose frames are kept."""

    def __init__(self, pace: str) -> None:
        self.frames: list[EngineFrame] = []
        self.metronome = Metronome(WORDS, Pace.parse(pace))
        self.peer = FramePeer(self.metronome, lambda frame: self.frames.append(EngineFrame.FromString(frame)))

    async def settle(self) -> None:
        await asyncio.sleep(0)


@settings(max_examples=80, deadline=None)
@given(OPERATIONS)
def test_every_request_gets_the_token_of_every_tick_whatever_credit_there_is(operations):
    async def run() -> None:
        table = Table("rate 50")
        credit, wanted, limits, cancelled = 0, {}, {}, set()
        for kind, number in operations:
            if kind == "submit":
                request_id = f"r{len(limits)}"
                limits[request_id], wanted[request_id] = number, 0
                table.peer.submit(a_request(request_id, number))
            elif kind == "tick":
                for _ in range(number):
                    table.peer.tick()
                for one in limits.keys() - cancelled:
                    wanted[one] = min(limits[one], wanted[one] + number)
            elif kind == "allow":
                credit += number
                table.peer.allow(number)
            elif wanted.get(f"r{number}", 0) < limits.get(f"r{number}", 0):
                cancelled.add(f"r{number}")
                table.peer.cancel(f"r{number}", satisfied=False)
            await table.settle()
            assert len(table.frames) <= credit
        table.peer.allow(1000)
        await table.settle()

        seen = events_by_request(table.frames)
        for request_id, tokens in wanted.items():
            events = seen[request_id]
            got = tokens_of(events)
            assert events[0].response.HasField("started")
            # What was not sent when a request is cancelled is not sent any more.
            assert len(got) <= tokens if request_id in cancelled else len(got) == tokens
            if got:
                start = WORDS.index(got[0])
                assert got == [WORDS[(start + i) % len(WORDS)] for i in range(len(got))]
            ended = request_id in cancelled or tokens == limits[request_id]
            assert [event.final for event in events] == [False] * (len(events) - ended) + [True] * ended
            if ended:
                finished = events[-1].response.finished
                assert finished.usage.completion_tokens == len(got)
                expected = FINISH_REASON_CANCELLED if request_id in cancelled else FINISH_REASON_LENGTH
                assert finished.reason == expected
        steps = [frame.step for frame in table.frames]
        assert steps == sorted(set(steps))
        counts = table.metronome.counts
        assert counts.tokens == sum(len(tokens_of(events)) for events in seen.values())
        assert counts.received == len(limits) == counts.open + counts.completed + counts.aborted
        assert counts.aborted == len(cancelled)

    asyncio.run(run())


async def test_a_tick_is_one_frame_for_all_requests():
    table = Table("rate 50")
    table.peer.allow(10)
    for number in range(5):
        table.peer.submit(a_request(f"r{number}", 10))
    await table.settle()
    assert len(table.frames) == 1
    table.metronome.tick()
    assert len(table.frames) == 2
    tokens = [tokens_of([event]) for event in table.frames[1].events]
    assert [len(each) for each in tokens] == [1] * 5
    assert {token for each in tokens for token in each} == set(WORDS)


async def test_saturated_a_frame_is_sent_for_every_credit_and_no_more():
    table = Table("saturate")
    table.peer.submit(a_request("a", 1000))
    table.peer.submit(a_request("b", 1000))
    table.peer.allow(7)
    await table.settle()
    assert len(table.frames) == 7
    assert all(len(tokens_of([event])) == 1 for frame in table.frames[1:] for event in frame.events)
    assert len(tokens_of(events_by_request(table.frames)["a"])) == 7
    await table.settle()
    assert len(table.frames) == 7


async def test_an_instant_request_is_one_frame():
    table = Table("instant")
    table.peer.allow(1)
    table.peer.submit(a_request("a", 4))
    await table.settle()
    (frame,) = table.frames
    assert len(tokens_of(frame.events)) == 4
    assert [event.final for event in frame.events] == [False, False, True]
    assert table.metronome.counts.open == 0


async def test_an_idle_request_starts_and_says_no_more():
    table = Table("idle")
    table.peer.allow(5)
    table.peer.submit(a_request("a", 4))
    await table.settle()
    assert [event.response.WhichOneof("event") for event in table.frames[0].events] == ["started"]
    assert table.metronome.counts.open == 1
    table.peer.close()
    assert table.metronome.counts.open == 0
    assert table.metronome.counts.aborted == 1


def test_every_word_shows_the_marker_once():
    tokenizer = Tokenizer.from_directory(DEMO_MODEL)
    words = marked_words((DEMO_MODEL / "tokenizer.json").read_bytes())
    assert len(words) > 5
    for first in words:
        for second in words:
            assert tokenizer.decode([first, second]).count(MARKER) == 2


@pytest.mark.parametrize("text", ["", "fast", "rate -1", "rate 0", "idle 5", "rate x"])
def test_no_pace_is_refused(text):
    with pytest.raises(ValueError):
        Pace.parse(text)
