"""An engine without a model, for tests of what carries requests: it does what each request's id says.

One implementation of the behaviour, served over both transports, so that one suite can hold them to the same
contract. A request whose id starts with

- `count` streams its prompt back, one token per event, and finishes;
- `flood` does the same with all events at once;
- `hang` starts and then waits to be cancelled;
- `queue` never even starts;
- `refuse` fails before anything was emitted, with details;
- `break` emits one token and then fails with INTERNAL.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc

from rhizome.common.v1.common_pb2 import Usage
from rhizome.engine.v1.engine_service_pb2 import (
    GetLoadResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
)
from rhizome.engine.v1.frames_pb2 import Call, CallResult, RequestEvent, Submit
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_STOP,
    FinishReason,
    GenerateResponse,
    TokenDelta,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.curve import ServerCurve
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import FrameServer, Peer
from rhizome_transport.servicer import unimplemented
from rhizome_transport.tokenizer_chunks import split_files

MODEL = "scripted"
TOKENIZER_FILES = {"tokenizer.json": b"{}" * 200_000, "tokenizer_config.json": b"{}", "empty": b""}


class Script:
    """The behaviour, and a record of what was asked; safe to read from any thread.

    Attributes:
        submits: everything submitted, oldest first.
        cancels: ids of all Cancel frames, oldest first.
        lost: ids of requests whose peer vanished.
        draining: refuse so many requests more, as who is going away does.
    """

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.submits: list[Submit] = []
        self.cancels: list[str] = []
        self.lost: list[str] = []
        self.draining = 0

    def begin(self, submit: Submit) -> Iterator[RequestEvent]:
        """The events of one request; one is taken per step."""
        self.submits.append(submit)
        request_id, prompt = submit.request.request_id, submit.request.token_ids.ids
        kind = request_id.partition("-")[0]
        if self.draining:
            self.draining -= 1
            leaving = EngineError(grpc.StatusCode.UNAVAILABLE, "it is going away", reason="DRAINING")
            yield RequestEvent(request_id=request_id, status=leaving.to_status(), final=True)
            return
        if kind == "queue":
            return
        if kind == "refuse":
            error = EngineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the queue is full; try again later",
                reason="QUEUE_FULL",
                param="priority",
                retry_after_s=1.5,
            )
            yield RequestEvent(request_id=request_id, status=error.to_status(), final=True)
            return
        yield _started(request_id, len(prompt))
        if kind == "hang":
            return
        for token_id in prompt:
            yield _delta(request_id, token_id)
            if kind == "break":
                broken = EngineError(grpc.StatusCode.INTERNAL, "the step failed")
                yield RequestEvent(request_id=request_id, status=broken.to_status(), final=True)
                return
        yield finished(request_id, FINISH_REASON_STOP, len(prompt))

    def answer(self, call: Call) -> Iterator[CallResult]:
        """The answers to one call."""
        if call.method == "GetModelInfo":
            wanted = GetModelInfoRequest.FromString(call.request).model
            if wanted not in ("", MODEL):
                error = EngineError(
                    grpc.StatusCode.NOT_FOUND, f"no model {wanted!r}; {MODEL!r} is served", param="model"
                )
                yield CallResult(call_id=call.call_id, status=error.to_status(), final=True)
                return
            info = GetModelInfoResponse(model=MODEL, instance_id=self.instance_id)
            yield CallResult(call_id=call.call_id, response=info.SerializeToString(), final=True)
        elif call.method == "GetTokenizer":
            for chunk in split_files(TOKENIZER_FILES):
                yield CallResult(call_id=call.call_id, response=chunk.SerializeToString())
            yield CallResult(call_id=call.call_id, final=True)
        elif call.method == "GetLoad":
            load = GetLoadResponse(load=Load(instance_id=self.instance_id, running_requests=3))
            yield CallResult(call_id=call.call_id, response=load.SerializeToString(), final=True)
        else:
            error = unimplemented(call.method)
            yield CallResult(call_id=call.call_id, status=error.to_status(), final=True)


class ScriptedCore:
    """A `FrameServer` in a thread, as an engine core drives it: poll, step, flush."""

    def __init__(
        self,
        endpoint: str,
        *,
        instance_id: str = "core-1",
        tcp_endpoint: str = "",
        curve: ServerCurve | None = None,
    ) -> None:
        self.script = Script(instance_id)
        self.endpoint = endpoint
        self.steps = 0
        self.max_waiting_events = 0
        self._running: dict[tuple[Peer, str], Iterator[RequestEvent]] = {}
        self._stopping = threading.Event()
        self._server = FrameServer(endpoint, instance_id=instance_id, tcp_endpoint=tcp_endpoint, curve=curve)
        self.tcp_endpoint = self._server.tcp_endpoint
        self.counters = self._server.counters
        self._thread = threading.Thread(target=self._loop, name="scripted-core", daemon=True)
        self._thread.start()

    @property
    def open_requests(self) -> int:
        """Requests that were neither finished nor cancelled."""
        return len(self._running)

    @property
    def peers(self) -> int:
        """Connected peers."""
        return len(self._server.peers)

    def stop(self) -> None:
        """End as a core that is killed would: without a word to anybody."""
        self._stopping.set()
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            for peer, frame in self._server.poll(2):
                if frame.HasField("submit"):
                    request_id = frame.submit.request.request_id
                    self._running[peer, request_id] = self.script.begin(frame.submit)
                elif frame.HasField("cancel"):
                    self._cancel(peer, frame.cancel.request_id)
                else:
                    for result in self.script.answer(frame.call):
                        self._server.reply(peer, result)
            for peer in self._server.take_gone():
                for owner, request_id in [key for key in self._running if key[0] is peer]:
                    self.script.lost.append(request_id)
                    del self._running[owner, request_id]
            self.steps += 1
            self._advance()
            self._server.flush(self.steps)
        self._server.close()

    def _advance(self) -> None:
        for (peer, request_id), events in list(self._running.items()):
            flood = request_id.startswith("flood")
            for event in events:
                self._server.emit(peer, event)
                self.max_waiting_events = max(self.max_waiting_events, peer.outbox.waiting_events)
                if event.final:
                    del self._running[peer, request_id]
                if not flood:
                    break

    def _cancel(self, peer: Peer, request_id: str) -> None:
        self.script.cancels.append(request_id)
        if self._running.pop((peer, request_id), None) is not None:
            self._server.emit(peer, finished(request_id, FINISH_REASON_CANCELLED, 0))


def finished(request_id: str, reason: FinishReason.ValueType, completion_tokens: int) -> RequestEvent:
    """The last event of a request."""
    response = GenerateResponse()
    response.finished.reason = reason
    response.finished.usage.CopyFrom(Usage(completion_tokens=completion_tokens))
    return RequestEvent(request_id=request_id, response=response, final=True)


def _started(request_id: str, prompt_tokens: int) -> RequestEvent:
    response = GenerateResponse()
    response.started.prompt_tokens = prompt_tokens
    return RequestEvent(request_id=request_id, response=response)


def _delta(request_id: str, token_id: int) -> RequestEvent:
    response = GenerateResponse(delta=TokenDelta(token_ids=[token_id]))
    return RequestEvent(request_id=request_id, response=response)
