"""Frames of events for one peer of a `metronome_engine`.

They are joined from parts that were serialised before (joined messages are one message in protobuf), so that
a frame for a set of requests that does not change costs microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rhizome.engine.v1.frames_pb2 import EngineFrame, RequestEvent
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    Started,
    TokenDelta,
)
from rhizome_testing.metronome import Metronome

CONTEXT_TOKENS = 1 << 20
"""So many that no stream of a measurement comes to its end."""

_NEVER = 1 << 62


@dataclass(eq=False, slots=True)
class _Part:
    """An open request of a peer, from the tick after `begun` to the tick `ends`.

    Its words are `offset` ahead of the tick's, so that not all requests say the same.
    """

    request_id: str
    offset: int
    prompt_tokens: int
    begun: int
    ends: int


class FramePeer:
    """The requests of one peer and the frames that tell of them.

    While the peer has no credit its tokens wait, and come merged in its next frame.

    Args:
        metronome: whose peer this is.
        send: carries a serialised EngineFrame; must not call back.
    """

    def __init__(self, metronome: Metronome, send: Callable[[bytes], None]) -> None:
        self._metronome = metronome
        self._send = send
        self._credit = 0
        self._step = 0
        self._parts: dict[str, _Part] = {}
        self._news: list[bytes] = []
        self._now = self._shown = self._last_begun = 0
        self._next_end = _NEVER
        self._bodies: dict[int, bytes] = {}
        self._pumping = False
        metronome.peers.add(self)

    def allow(self, frames: int) -> None:
        """More frames may be sent."""
        self._credit += frames
        self._pump_soon()

    def submit(self, request: GenerateRequest) -> None:
        """Begin a request."""
        prompt_tokens = len(request.token_ids.ids)
        self._metronome.counts.begin()
        self._news.append(_event(request.request_id, started(prompt_tokens)))
        limit = token_limit(request)
        part = _Part(
            request.request_id, self._metronome.counts.received, prompt_tokens, self._now, self._now + limit
        )
        if self._metronome.pace.kind == "instant":
            self._say(part, range(part.begun + 1, part.ends + 1))
            self._end(part, FINISH_REASON_LENGTH, limit)
        else:
            self._parts[request.request_id] = part
            self._last_begun = self._now
            self._changed()
        self._pump_soon()

    def cancel(self, request_id: str, *, satisfied: bool) -> None:
        """End a request; unknown ones are ignored."""
        part = self._parts.pop(request_id, None)
        if part is not None:
            reason = FINISH_REASON_STOP if satisfied else FINISH_REASON_CANCELLED
            self._end(part, reason, max(0, self._shown - part.begun))
            self._changed()
            self._pump_soon()

    def tick(self) -> None:
        """Every open request gets a token, shown when there is credit."""
        if self._parts:
            self._now += 1
            self._pump()

    def close(self) -> None:
        """The peer is gone."""
        self._metronome.peers.discard(self)
        for _ in self._parts:
            self._metronome.counts.end(completed=False)
        self._parts.clear()
        self._news.clear()
        self._credit = 0

    def _pump_soon(self) -> None:
        """Send once everything that arrived together was read."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        saturate = self._metronome.pace.kind == "saturate"
        while self._credit > 0 and (self._news or self._now > self._shown or (saturate and self._parts)):
            if saturate and self._now == self._shown:
                self._now += 1
            self._credit -= 1
            self._step += 1
            self._send(EngineFrame(step=self._step).SerializeToString() + self._take())

    def _take(self) -> bytes:
        """What happened since the last frame."""
        news, self._news = b"".join(self._news), []
        if self._now == self._shown:
            return news
        regular = self._now == self._shown + 1 and self._last_begun <= self._shown
        if regular and self._now < self._next_end:
            self._shown = self._now
            self._metronome.counts.tokens += len(self._parts)
            return news + self._body(self._now % len(self._metronome.words))
        for part in tuple(self._parts.values()):
            ticks = range(max(self._shown, part.begun) + 1, min(self._now, part.ends) + 1)
            if ticks:
                self._say(part, ticks)
            if part.ends <= self._now:
                del self._parts[part.request_id]
                self._end(part, FINISH_REASON_LENGTH, part.ends - part.begun)
        self._shown = self._now
        self._changed()
        body, self._news = b"".join(self._news), []
        return news + body

    def _body(self, position: int) -> bytes:
        body = self._bodies.get(position)
        if body is None:
            word = self._metronome.word
            body = b"".join(
                _event(part.request_id, delta((word(position + part.offset),)))
                for part in self._parts.values()
            )
            self._bodies[position] = body
        return body

    def _say(self, part: _Part, ticks: range) -> None:
        words = [self._metronome.word(tick + part.offset) for tick in ticks]
        self._news.append(_event(part.request_id, delta(words)))
        self._metronome.counts.tokens += len(words)

    def _end(self, part: _Part, reason: FinishReason.ValueType, tokens: int) -> None:
        self._metronome.counts.end(completed=reason != FINISH_REASON_CANCELLED)
        self._news.append(_event(part.request_id, finished(reason, part.prompt_tokens, tokens), final=True))

    def _changed(self) -> None:
        self._bodies.clear()
        self._next_end = min((part.ends for part in self._parts.values()), default=_NEVER)


def token_limit(request: GenerateRequest) -> int:
    """How many tokens a request gets."""
    left = CONTEXT_TOKENS - len(request.token_ids.ids)
    return min(left, request.stop.max_tokens) if request.stop.HasField("max_tokens") else left


def started(prompt_tokens: int) -> GenerateResponse:
    """The first event of a request."""
    return GenerateResponse(started=Started(prompt_tokens=prompt_tokens))


def delta(token_ids: Iterable[int]) -> GenerateResponse:
    """Tokens."""
    return GenerateResponse(delta=TokenDelta(token_ids=token_ids))


def finished(reason: FinishReason.ValueType, prompt_tokens: int, tokens: int) -> GenerateResponse:
    """The last event of a request."""
    response = GenerateResponse()
    response.finished.reason = reason
    response.finished.usage.prompt_tokens = prompt_tokens
    response.finished.usage.completion_tokens = tokens
    response.finished.timings.time_to_first_token.FromMilliseconds(1)
    return response


def _event(request_id: str, response: GenerateResponse, *, final: bool = False) -> bytes:
    """A frame with one event; joined with others it is a frame with all of them."""
    event = RequestEvent(request_id=request_id, response=response, final=final)
    return EngineFrame(events=(event,)).SerializeToString()
