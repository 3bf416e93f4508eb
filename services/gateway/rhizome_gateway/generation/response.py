"""The response to a generation request, streamed or whole.

The engine's events are pushed: while a frame is read from the engine, each choice turns its tokens into
events, the API's writer turns those into bytes, and these go out on the client's connection, all in one call.
The task of the request only opens the choices, sends the status line, and waits for the end or the client's
leave.

      engine frame ─▶ RequestStream ─▶ Lane, Choice ─▶ StreamWriter ─▶ ClientConnection
                                             └───────▶ Answer ─▶ Rendering.whole ─▶ one JSON body
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome_gateway.errors import ApiError, stopping_error
from rhizome_gateway.generation.events import Ended, Event
from rhizome_gateway.generation.lane import Lane, PlannedChoice
from rhizome_gateway.generation.summary import Answer, Summary
from rhizome_gateway.generation.writer import Rendering, StreamWriter
from rhizome_gateway.http.connection import ClientConnection
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.metrics.generation import GenerationMeter
from rhizome_transport.client import EngineClient
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

MAX_AT_ONCE = 64
"""Open engine requests of one HTTP request; others follow, so that it never fills the engine's queue."""

_REFUSAL_S = 0.25
"""How long the status line waits for other choices once one has begun: an engine refuses faster."""

EVENT_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class Generation:
    """Runs the choices of one request and sends what comes of them.

    Args:
        exchange: the request to answer.
        client: runs the engine requests.
        choices: in order of their index.
        rendering: how the API shows it.
        stream: send pieces as they come.
        choices_per_prompt: so many choices in a row share a prompt.
        keep_alive_s: silence in a stream before a keep-alive.
        stalled_s: time that a client may read nothing.
        timeout_s: time for the engine, None for no limit.
        trace: the parent span of what the engine does.
        meter: measures it.

    Attributes:
        failure: what broke it off.
        started: the status line is out.
        summary: of the whole response.
    """

    __slots__ = (
        "_answers",
        "_awaited",
        "_begun",
        "_changed",
        "_choices",
        "_choices_per_prompt",
        "_client",
        "_connection",
        "_exchange",
        "_keep_alive_s",
        "_lanes",
        "_last_sent",
        "_loop",
        "_open",
        "_opening",
        "_rendering",
        "_room",
        "_stalled_s",
        "_timeout_s",
        "_timer",
        "_trace",
        "_unsent",
        "_writer",
        "failure",
        "started",
        "summary",
    )

    def __init__(
        self,
        exchange: Exchange,
        client: EngineClient,
        choices: Sequence[PlannedChoice],
        rendering: Rendering,
        *,
        stream: bool,
        choices_per_prompt: int,
        keep_alive_s: float,
        stalled_s: float,
        timeout_s: float | None,
        trace: TraceContext | None,
        meter: GenerationMeter,
    ) -> None:
        self._exchange = exchange
        self._connection: ClientConnection = exchange.connection
        self._client = client
        self._choices = choices
        self._rendering = rendering
        self.summary = Summary(choices_per_prompt)
        self._writer: StreamWriter | None = rendering.stream(self.summary) if stream else None
        self._answers = [] if stream else [Answer() for _ in choices]
        self._choices_per_prompt = choices_per_prompt
        self._keep_alive_s = keep_alive_s
        self._stalled_s = stalled_s
        self._timeout_s = timeout_s
        self._trace = trace
        self._lanes = [
            Lane(index, planned.choice, meter.choice(), self._connection, self)
            for index, planned in enumerate(choices)
        ]
        self._unsent: list[bytes] = []
        self._begun = False
        self.started = False
        self._awaited = set(range(len(choices))[:MAX_AT_ONCE])
        self._open = len(choices)
        self.failure: ApiError | None = None
        self._last_sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] = self._loop.create_future()
        self._room = asyncio.Semaphore(MAX_AT_ONCE) if len(choices) > MAX_AT_ONCE else None
        self._opening: asyncio.Task[None] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers so far; each prompt counts once."""
        prompts = sum([c.choice.prompt_tokens for c in self._choices[:: self._choices_per_prompt]])
        return prompts + sum([c.choice.completion_tokens for c in self._choices])

    async def run(self) -> str:
        """Generate and send; whatever was not finished is cancelled in the engine.

        Returns:
            How it ended: empty for a good end, `cancelled` when the client went away, or the code of the
            error that broke the stream off.

        Raises:
            ApiError: the engine refused or failed before anything was sent.
        """
        connection = self._connection
        connection.on_writable = self._resume
        try:
            await self._open_streams(range(len(self._choices))[:MAX_AT_ONCE])
            connection.on_lost = self._wake
            if self._room is not None:
                self._opening = asyncio.create_task(self._open_rest())
            if self._writer is not None:
                await self._send_stream(self._writer)
            else:
                await self._send_whole()
        finally:
            connection.on_lost = connection.on_writable = None
            if self._timer is not None:
                self._timer.cancel()
            if self._opening is not None:
                self._opening.cancel()
            for lane in self._lanes:
                if lane.stream is not None:
                    lane.stream.close()
            self._lanes = []  # they hold this object: a circle would wait for the garbage collector
        if connection.lost:
            await self._exchange.see_departure()
            return "cancelled"
        return "" if self.failure is None else self.failure.code or "error"

    async def _open_rest(self) -> None:
        """Open further choices as earlier ones end."""
        try:
            await self._open_streams(range(MAX_AT_ONCE, len(self._choices)))
        except Exception as error:
            self.fail(error)

    async def _open_streams(self, indexes: range) -> None:
        for index in indexes:
            if self._room is not None:
                await self._room.acquire()
            if self._connection.lost:
                return
            request, lane = self._choices[index].request, self._lanes[index]
            try:
                lane.stream = await self._client.open(
                    request, lane.pump, timeout_s=self._timeout_s, trace=self._trace
                )
            except EngineError as error:
                raise self._exchange.failure(error) from error

    # While the engine works

    def emit(self, lane: Lane, events: Sequence[Event], now: float) -> None:
        """See `lane.Sink`."""
        index, last = lane.index, events[-1]
        if type(last) is Ended:
            self.summary.add(index, last)
            lane.meter.finish(last)
            self._open -= 1
            if self._room is not None:
                self._room.release()
        if (writer := self._writer) is not None:
            if len(events) == 1:
                chunk = writer.event(index, last)
            else:
                chunk = b"".join([writer.event(index, event) for event in events])
            if not (self.started and self._open):  # the status line or the end is written with it
                self._unsent.append(chunk)
            elif chunk:
                self._last_sent = now
                self._connection.write_chunk(chunk)
        else:
            for event in events:
                self._answers[index].add(event)
        if self._awaited and index in self._awaited:
            self._awaited.discard(index)
            if not self._begun or not self._awaited:
                self._begun = True
                self._wake()
        if not self._open:
            self._wake()

    def fail(self, error: Exception) -> None:
        """See `lane.Sink`."""
        if self.failure is None:
            self.failure = self._exchange.failure(error)
            self._wake()

    def _wake(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)

    # In the task of the request

    async def _wait(self, timeout_s: float | None = None) -> None:
        """Return when something changed, or after the time-out."""
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
        try:
            await self._changed
        finally:
            if timer is not None:
                timer.cancel()
        self._changed = self._loop.create_future()

    @property
    def _done(self) -> bool:
        return not self._open or self.failure is not None or self._connection.lost

    async def _send_whole(self) -> None:
        while not self._done:
            await self._wait()
        if self._connection.lost:
            return
        if self.failure is not None:
            raise self.failure
        write = partial(self._rendering.whole, self._answers, self.summary)
        # Log probabilities of prompts may be a million.
        scored = any(one.choice.on_prompt_scored is not None for one in self._choices)
        await self._exchange.send_json(200, await asyncio.to_thread(write) if scored else write())

    async def _send_stream(self, writer: StreamWriter) -> None:
        # The engine says that it has begun, or refuses. One that says nothing for so long has taken the
        # request into its queue: refusals come at once.
        if not self._done and not self._begun:
            await self._wait(self._keep_alive_s)
        deadline = self._loop.time() + _REFUSAL_S  # one of several choices may still be refused
        while (
            not self._done and self._begun and self._awaited and (left_s := deadline - self._loop.time()) > 0
        ):
            await self._wait(left_s)
        if self._connection.lost:
            return
        if self.failure is not None:
            raise self.failure
        if not self._open:  # all of it is there
            await self._exchange.start(
                200, EVENT_STREAM_HEADERS, self._take_unsent() + writer.end(), last=True
            )
            return
        first = self._take_unsent() if self._begun else writer.keep_alive
        await self._exchange.start(200, EVENT_STREAM_HEADERS, first)
        self.started, self._last_sent = True, time.monotonic()
        self._timer = self._loop.call_later(self._keep_alive_s, self._keep_alive)
        if late := self._take_unsent():  # what came while the first bytes went out
            self._connection.write_chunk(late)
        self._resume()
        try:
            while not self._done:
                await self._wait()
        except asyncio.CancelledError:  # the process ends, and has no time left
            last = writer.broken_off(stopping_error()) if self._open else writer.end()
            self._connection.write_last(self._take_unsent() + last)
            raise
        if self._connection.lost:
            return
        failure = self.failure
        last = writer.end() if failure is None else writer.broken_off(failure)
        await self._exchange.end(self._take_unsent() + last)

    def _take_unsent(self) -> bytes:
        chunks, self._unsent = self._unsent, []
        return b"".join(chunks)

    def _resume(self) -> None:
        for lane in self._lanes:
            lane.pump()

    def _keep_alive(self) -> None:
        """Break the silence, if there was one; and come again when the next could be over.

        A client that reads nothing for `stalled_s` counts as gone: its connection would never break.
        """
        now = time.monotonic()
        left_s = self._last_sent + self._keep_alive_s - now
        if left_s < 0.001:
            left_s = self._keep_alive_s
            if not self._connection.paused:
                self._last_sent = now
                if self._writer is not None:
                    self._connection.write_chunk(self._writer.keep_alive)
            elif now - self._last_sent >= self._stalled_s:
                self._connection.abort()
                return
        self._timer = self._loop.call_later(left_s, self._keep_alive)
