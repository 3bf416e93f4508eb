"""All requests of one peer: which engine each is at, and what of the engines' frames the peer gets to see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet

from rhizome.common.v1.common_pb2 import Status
from rhizome.engine.v1.frames_pb2 import Cancel, ClientFrame, EngineFrame, Submit
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, Finished, GenerateResponse
from rhizome.engine.v1.relay_pb2 import RelayEvent, RelayFrame
from rhizome_proxy.router import Router
from rhizome_proxy.service.answer import WAIT_STEP_S, Answer
from rhizome_proxy.service.engine_link import EngineLink
from rhizome_proxy.service.route import Departure, Route, not_admitted
from rhizome_routing.admission import NotAdmitted, Ticket
from rhizome_telemetry.propagation import from_proto, to_proto
from rhizome_telemetry.tracing import tracing_enabled
from rhizome_transport.continuation import Continuation
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_queue import FrameQueue
from rhizome_transport.split_request import SplitRequest
from rhizome_transport.wire import cut, field

_SUBMIT = ClientFrame.DESCRIPTOR.fields_by_name["submit"].number
_REQUEST = Submit.DESCRIPTOR.fields_by_name["request"].number
_ENGINE_MAY_SAY_SO_S = 0.25
_TOO_LATE = EngineError(
    grpc.StatusCode.DEADLINE_EXCEEDED, "the time given ran out before an engine took the request"
)
_DRAINED = EngineError(grpc.StatusCode.UNAVAILABLE, "it ended what was open when it went away")
_CANCELLED = GenerateResponse(finished=Finished(reason=FINISH_REASON_CANCELLED)).SerializeToString()
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request between its Submit and its final event.

    Attributes:
        request_id: unique among the peer's open requests.
        asked: as the peer sent it, or what is left of it: another engine may have to take it.
        submit: what came with it.
        answer: its way through the pool.
        continuation: what the peer has got.
        deadline: when the caller gives up, in seconds of the loop's clock; `None` is never.
        waiting: the wait for room at the engines.
        expiry: ends it if its engine does not in time.
        link: the engine's stream that it is on.
        cancelled: the peer asked to end it.
        satisfied: the peer asked to end it because it has all that it wants.
    """

    request_id: str
    asked: SplitRequest
    submit: Submit
    answer: Answer
    continuation: Continuation
    deadline: float | None
    waiting: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None
    link: EngineLink | None = None
    cancelled: bool = False
    satisfied: bool = False


class PeerSession:
    """The requests of one downstream Connect stream.

    Nothing here awaits, so each frame is handled as a whole.

    Args:
        router: chooses engines.
        queue: takes the frames for the peer.
        peer_name: who the peer is, for the engines' logs.
        window_frames: frames with events that each engine may send ahead of the peer.
    """

    def __init__(self, router: Router, queue: FrameQueue, *, peer_name: str, window_frames: int) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.draining = False
        self._router = router
        self._queue = queue
        self._peer_name = peer_name
        self._window_frames = window_frames
        self._requests: dict[str, OpenRequest] = {}
        self._links: dict[str, EngineLink] = {}
        self._broken: list[tuple[OpenRequest, EngineError, Departure | None, Status | None]] = []
        self._loop = asyncio.get_running_loop()

    @property
    def open_requests(self) -> int:
        """Requests without a final event."""
        return len(self._requests)

    # From the peer

    def submit(self, payload: bytes) -> None:
        """Take a serialised Submit.

        Raises:
            DecodeError: it is none.
        """
        rest, request_bytes = cut(payload, _REQUEST)
        submit, asked = Submit.FromString(rest), SplitRequest.parse(request_bytes or b"")
        head, request_id = asked.head, asked.head.request_id
        route = Route(self._router, "Generate", asked, head.model, from_proto(submit.trace))
        refusal = self._refusal(request_id)
        if refusal is not None:
            route.end(refusal.code.name, refusal.message)
            self._tell_last(RelayEvent(request_id=request_id, status=refusal.to_status()))
            return
        limits = [] if self._router.timeout_s is None else [self._router.timeout_s]
        if submit.HasField("timeout"):
            limits.append(submit.timeout.ToNanoseconds() / 1e9)
        deadline = self._loop.time() + min(limits) if limits else None
        continuation = Continuation(asked)
        answer = Answer(route, continuation, self._router.resume_wait_s)
        request = OpenRequest(request_id, asked, submit, answer, continuation, deadline)
        self._requests[request_id] = request
        if deadline is not None:
            request.expiry = self._loop.call_at(deadline + _ENGINE_MAY_SAY_SO_S, self._expire, request)
        self.idle.clear()
        try:
            ticket = route.offer()
        except EngineError as error:
            self._fail(request, error)
            return
        if ticket is None or ticket.admitted:
            self._dispatch(request)
        else:
            request.waiting = asyncio.create_task(self._wait(request, ticket))

    def cancel(self, cancel: Cancel) -> None:
        """End a request, if it is open."""
        request = self._requests.get(cancel.request_id)
        if request is None:
            return
        request.cancelled = True
        request.satisfied = cancel.satisfied
        if request.link is not None:
            request.link.send(ClientFrame(cancel=cancel).SerializeToString())
        else:
            self._end_cancelled(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Note that engines are told to end these requests, so that none of them goes on elsewhere."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                request.cancelled = True
                if request.link is None:
                    self._end_cancelled(request)

    def close(self) -> None:
        """The peer is gone: end its streams, so that the engines cancel what it had open."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        for request in list(self._requests.values()):
            self._end(request, "CANCELLED", "the peer is gone")

    async def _wait(self, request: OpenRequest, ticket: Ticket) -> None:
        """Send a request on once there is room for it; its end cancels this."""
        try:
            async with asyncio.timeout_at(request.deadline):
                await ticket.wait()
        except NotAdmitted as refusal:
            self._fail(request, not_admitted(refusal))
        except TimeoutError:
            self._fail(request, _TOO_LATE)
        else:
            self._dispatch(request)

    def _refusal(self, request_id: str) -> EngineError | None:
        if not request_id:
            text = "request_id is empty; on Connect it names the request in every event, so give one"
            return _invalid(text, "request_id")
        if request_id in self._requests:
            text = f"request_id {request_id!r} is open on this stream; give each request an id of its own"
            return _invalid(text, "request_id")
        if self.draining:
            text = "this proxy is shutting down; use another one"
            return EngineError(grpc.StatusCode.UNAVAILABLE, text, reason="DRAINING")
        return None

    # Towards the engines

    def _dispatch(self, request: OpenRequest) -> None:
        """Send a request to the next engine, or tell the peer that nobody takes it."""
        submit = request.submit
        try:
            if request.deadline is not None:
                left_s = request.deadline - self._loop.time()
                if left_s <= 0:
                    raise _TOO_LATE
                submit.timeout.FromNanoseconds(int(left_s * 1e9))
            attempt = request.answer.next_attempt()
        except EngineError as error:
            self._fail(request, error)
            return
        if attempt is None:
            request.link = None
            self._loop.call_later(WAIT_STEP_S, self._dispatch_again, request)
            return
        submit.trace.CopyFrom(to_proto(attempt.trace_parent))
        request.link = self._links.get(attempt.backend.name) or EngineLink(
            attempt.backend,
            peer_name=self._peer_name,
            window_frames=self._window_frames,
            on_frame=self._on_frame,
            on_lost=self._on_lost,
        )
        self._links[attempt.backend.name] = request.link
        asked = field(_REQUEST, request.asked.serialize())
        request.link.send(field(_SUBMIT, asked, submit.SerializeToString()))

    def _dispatch_again(self, request: OpenRequest) -> None:
        if self._requests.get(request.request_id) is request and request.link is None:
            self._dispatch(request)

    def _move(
        self, request: OpenRequest, error: EngineError, why: Departure | None, said: Status | None = None
    ) -> None:
        """An engine broke a request off: another one takes it, or goes on with it, or it ends."""
        try:
            last = request.answer.broke(error, why)
        except EngineError as verdict:
            if why is None or not request.cancelled:
                self._fail(request, verdict, said if verdict is error else None)
                return
            last = None
        if request.cancelled:
            self._end_cancelled(request)
        elif last is not None:  # it had got all its tokens before its engine was lost
            self._end(request, "OK")
            self._tell_last(RelayEvent(request_id=request.request_id, response=last))
        else:
            self._dispatch(request)

    # From the engines

    def _on_frame(self, link: EngineLink, payload: bytes) -> None:
        """Pass an engine's frame on: as the very same bytes, unless something in it is not for the peer."""
        frame = RelayFrame.FromString(payload)
        if len(UnknownFieldSet(frame)):  # whatever EngineFrame has beside events
            payload = _without_control(link, payload)
            frame = RelayFrame.FromString(payload)
        hidden: list[int] = []
        changed = False
        requests = self._requests
        for index, event in enumerate(frame.events):
            request = requests.get(event.request_id)
            if request is None or request.link is not link:
                hidden.append(index)
            elif event.final or not (continuation := request.continuation).streaming:
                response = event.response
                told = self._on_event(request, event, response)
                if told is None:
                    hidden.append(index)
                elif told is not response:
                    event.response = told
                    changed = True
            else:
                continuation.log += event.response
        broken, self._broken = self._broken, []
        if len(hidden) < len(frame.events):
            for index in reversed(hidden):
                del frame.events[index]
            if hidden or changed:
                payload = frame.SerializeToString()
            self._queue.put_events(payload, link.consumed)
        elif hidden:
            link.consumed()
        # Only now, so that what ends a request comes after what else this frame has of it.
        for one in broken:
            self._move(*one)

    def _on_event(self, request: OpenRequest, event: RelayEvent, response: bytes) -> bytes | None:
        """Look at an event that is not just more tokens; returns its response as the peer should see it."""
        answer = request.answer
        if event.HasField("status"):
            error = EngineError.from_status(event.status)
            why = answer.departure(error, said=True)
            self._broken.append((request, error, why, event.status))
            return None
        if event.final and _drained(request, response):
            self._broken.append((request, _DRAINED, Departure.LOST, None))
            return None
        told = answer.take(response)
        if event.final:
            cancelled = request.cancelled and not request.satisfied
            if tracing_enabled():
                finished = GenerateResponse.FromString(response).finished
                cancelled = finished.reason == FINISH_REASON_CANCELLED
            self._end(request, "CANCELLED" if cancelled else "OK")
        return told

    def _on_lost(self, link: EngineLink, error: EngineError) -> None:
        """An engine's stream ended: what had not started goes elsewhere, the rest goes on there if it can."""
        backend = link.backend
        if self._links.get(backend.name) is link:
            del self._links[backend.name]
        stranded = [request for request in self._requests.values() if request.link is link]
        _log.log(
            logging.WARNING if stranded else logging.INFO,
            "the stream to backend %s ended with %d open requests: %s",
            backend.name,
            len(stranded),
            error.message,
        )
        why = Departure.LOST if link.reached else Departure.UNREACHED
        for request in stranded:
            self._move(request, error, why)

    # Ends

    def _expire(self, request: OpenRequest) -> None:
        """The engine was told the deadline, and does not keep it."""
        if request.link is not None:
            cancel = Cancel(request_id=request.request_id)
            request.link.send(ClientFrame(cancel=cancel).SerializeToString())
        self._fail(request, _TOO_LATE)

    def _fail(self, request: OpenRequest, error: EngineError, said: Status | None = None) -> None:
        self._end(request, error.code.name, error.message)
        self._tell_last(RelayEvent(request_id=request.request_id, status=said or error.to_status()))

    def _end_cancelled(self, request: OpenRequest) -> None:
        """End a request that the peer has cancelled and whose engine can no longer say so."""
        self._end(request, "OK" if request.satisfied else "CANCELLED")
        self._tell_last(RelayEvent(request_id=request.request_id, response=_CANCELLED))

    def _end(self, request: OpenRequest, code: str, message: str = "") -> None:
        request.answer.end(code, message)
        if request.expiry is not None:
            request.expiry.cancel()
        if request.waiting is not None and request.waiting is not asyncio.current_task():
            request.waiting.cancel()
        del self._requests[request.request_id]
        if not self._requests:
            self.idle.set()

    def _tell_last(self, event: RelayEvent) -> None:
        """Send a frame of the proxy's own; step 0, as steps count within one engine."""
        event.final = True
        self._queue.put_events(RelayFrame(events=[event]).SerializeToString())


def _drained(request: OpenRequest, response: bytes) -> bool:
    """Whether an engine that is going away ended a request which nobody had cancelled."""
    if request.cancelled or request.link is None or request.link.backend.healthy:
        return False
    return GenerateResponse.FromString(response).finished.reason == FINISH_REASON_CANCELLED


def _without_control(link: EngineLink, payload: bytes) -> bytes:
    """Take what an engine says to the proxy itself out of its frame."""
    frame = EngineFrame.FromString(payload)
    if frame.HasField("load"):
        link.backend.observe_load(frame.load)
    frame.ClearField("load")
    frame.ClearField("welcome")
    frame.ClearField("pong")
    frame.ClearField("call_results")
    return frame.SerializeToString()


def _invalid(message: str, param: str) -> EngineError:
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, message, param=param)
