"""One `Connect` stream: frames in, one frame per wake-up out."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse
from rhizome.engine.v1.frames_pb2 import (
    Call,
    CallResult,
    ClientFrame,
    EngineFrame,
    Pong,
    RequestEvent,
    Welcome,
)
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_launcher.simulate.engine_service.core import EngineCore
from rhizome_launcher.simulate.engine_service.events import EventSink, FrameEvents
from rhizome_launcher.simulate.request import SimulatedRequest
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.servicer import unimplemented


class Peer:
    """What one peer asked for and what it has not heard yet.

    Without credit, events wait in their sinks, where tokens merge.

    Args:
        core: the engine.
        send: carries a serialised `EngineFrame`.
    """

    def __init__(self, core: EngineCore, send: Callable[[bytes], None]) -> None:
        self._core = core
        self._send = send
        self._credit = 0
        self._step = 0
        self._greeted = False
        self._open: dict[str, tuple[SimulatedRequest, EventSink]] = {}
        self._news: dict[EventSink, FrameEvents] = {}
        self._events: dict[EventSink, tuple[str, FrameEvents]] = {}
        core.after_beat.append(self._pump)

    def take(self, frame: ClientFrame) -> None:
        """Do what a frame asks for; what comes before Hello is ignored."""
        kind = frame.WhichOneof("frame")
        if kind == "hello":
            self._greeted = True
            welcome = Welcome(protocol_version=PROTOCOL_VERSION, instance_id=self._core.instance_id)
            self._answer(EngineFrame(welcome=welcome))
            self._credit = max(1, frame.hello.initial_credit)
        elif not self._greeted:
            return
        elif kind == "submit":
            self._submit(frame.submit.request)
        elif kind == "cancel":
            self._cancel(frame.cancel.request_id, satisfied=frame.cancel.satisfied)
        elif kind == "credit":
            self._credit += frame.credit.frames
            self._pump()
        elif kind == "ping":
            self._answer(EngineFrame(pong=Pong(nonce=frame.ping.nonce)))
        elif kind == "call":
            self._call(frame.call)

    def close(self) -> None:
        """The peer is gone, and its requests with it."""
        self._core.after_beat.remove(self._pump)
        for request, _ in self._open.values():
            self._core.engine.cancel(request)
        self._open.clear()

    def _submit(self, asked: GenerateRequest) -> None:
        request_id = asked.request_id
        try:
            if request_id in self._open:
                raise EngineError(grpc.StatusCode.ALREADY_EXISTS, "a request with this id is open already")
            sink = self._core.sink(asked, self._note)
            self._events[sink] = request_id, FrameEvents(request_id)
            self._open[request_id] = self._core.submit(asked, sink), sink
        except EngineError as error:
            event = RequestEvent(request_id=request_id, status=error.to_status(), final=True)
            self._answer(EngineFrame(events=(event,)))

    def _cancel(self, request_id: str, *, satisfied: bool) -> None:
        request, sink = self._open.get(request_id, (None, None))
        if request is not None and sink is not None and sink.last is None:
            self._core.engine.cancel(request)
            sink.cancelled(request, satisfied=satisfied)
            self._note(sink)
            self._pump()

    def _note(self, sink: EventSink) -> None:
        if sink in self._events:
            self._news[sink] = self._events[sink][1]

    def _pump(self) -> None:
        if not self._news or self._credit < 1:
            return
        self._credit -= 1
        self._step += 1
        parts = [EngineFrame(step=self._step).SerializeToString()]
        for sink, events in self._news.items():
            ended = sink.last is not None
            parts.append(events.take(sink))
            if ended:
                request_id, _ = self._events.pop(sink)
                del self._open[request_id]
        self._news.clear()
        self._send(b"".join(parts))

    def _call(self, call: Call) -> None:
        core = self._core
        if call.method == "GetTokenizer":
            for chunk in core.tokenizer:
                self._result(CallResult(call_id=call.call_id, response=chunk.SerializeToString()))
            self._result(CallResult(call_id=call.call_id, final=True))
        elif call.method == "GetModelInfo":
            self._result(CallResult(call_id=call.call_id, response=core.info.SerializeToString(), final=True))
        elif call.method == "GetLoad":
            load = GetLoadResponse(load=core.load())
            self._result(CallResult(call_id=call.call_id, response=load.SerializeToString(), final=True))
        else:
            status = unimplemented(call.method).to_status()
            self._result(CallResult(call_id=call.call_id, status=status, final=True))

    def _result(self, result: CallResult) -> None:
        self._answer(EngineFrame(call_results=(result,)))

    def _answer(self, frame: EngineFrame) -> None:
        self._send(frame.SerializeToString())
