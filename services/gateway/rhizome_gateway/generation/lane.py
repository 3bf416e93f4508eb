"""One choice while the engine works: tokens in, events out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.choice import Choice
from rhizome_gateway.generation.events import Event
from rhizome_gateway.http.connection import ClientConnection
from rhizome_gateway.metrics.generation import ChoiceMeter
from rhizome_transport.errors import EngineError
from rhizome_transport.inbox import Arrived
from rhizome_transport.request_stream import RequestStream
from rhizome_transport.split_request import SplitRequest

_MOST_PER_TURN = 8
"""Deltas, of up to some hundred tokens, that one call takes where a reader has fallen behind."""


@dataclass(frozen=True, slots=True)
class PlannedChoice:
    """One choice: what to ask the engine, and what makes its answer into events."""

    request: SplitRequest
    choice: Choice


class Sink(Protocol):
    """The response that the choices are of.

    Attributes:
        failure: what broke it off; nothing more is taken then.
        started: its status line is out.
    """

    failure: ApiError | None
    started: bool

    def emit(self, lane: Lane, events: Sequence[Event], now: float) -> None:
        """Show what became of a choice, at a time of `time.monotonic`; never without events."""

    def fail(self, error: Exception) -> None:
        """Break off."""


class Lane:
    """Takes what there is for a choice, unless the client has to catch up first: then it merges.

    At 50 tokens per second each stream is cold when its turn comes. So what is looked at for every token lies
    in few objects.

    Args:
        index: of the choice.
        choice: makes tokens into events.
        meter: measures it.
        connection: the client's.
        sink: the response.

    Attributes:
        stream: the engine's events, once they are asked for.
    """

    __slots__ = ("_connection", "_sink", "choice", "index", "meter", "stream")

    def __init__(
        self, index: int, choice: Choice, meter: ChoiceMeter, connection: ClientConnection, sink: Sink
    ) -> None:
        self.index = index
        self.choice = choice
        self.meter = meter
        self.stream: RequestStream | None = None
        self._connection = connection
        self._sink = sink

    def pump(self) -> None:
        """Take what has come; called by the stream."""
        sink, stream, choice = self._sink, self.stream, self.choice
        if stream is None or sink.failure is not None:
            return
        try:
            for _ in range(_MOST_PER_TURN):
                # Before the status line, what slows the connection down is the answer to an earlier request.
                if self._connection.paused and sink.started:
                    return
                if (arrived := stream.take()) is None:
                    break
                self._feed(stream, arrived)
            else:  # others on the loop have waited long enough
                asyncio.get_running_loop().call_soon(self.pump)
                return
            if stream.ended and not choice.ended:
                raise ApiError.broken_answer()
        except EngineError as error:
            error.__traceback__ = None  # the inbox keeps it, and this frame the inbox: a circle
            if choice.satisfied and not choice.ended:
                sink.emit(self, choice.lost(), time.monotonic())
            elif not choice.ended:
                sink.fail(error)
        except Exception as error:
            sink.fail(error)

    def _feed(self, stream: RequestStream, arrived: Arrived) -> None:
        choice = self.choice
        now = time.monotonic()
        if isinstance(arrived, list):
            if choice.satisfied:
                return
            self.meter.observe_tokens(now, len(arrived))
            events = choice.feed_tokens(arrived)
        else:
            if num_tokens := len(arrived.delta.token_ids):
                self.meter.observe_tokens(now, num_tokens)
            events = choice.feed(arrived)
        if events:
            self._sink.emit(self, events, now)
        if choice.satisfied and not choice.ended:
            stream.cancel(satisfied=True)
