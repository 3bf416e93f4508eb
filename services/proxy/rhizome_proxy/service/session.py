"""All requests of one peer: which engine each is at, and what of the engines' frames the peer gets to see."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet

from rhizome.engine.v1.frames_pb2 import Cancel, ClientFrame, Submit
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, GenerateResponse
from rhizome.engine.v1.relay_pb2 import RelayEvent, RelayFrame
from rhizome_proxy.router import Router
from rhizome_proxy.service import frames
from rhizome_proxy.service.continuation import Continuation
from rhizome_proxy.service.engine_link import EngineLink
from rhizome_proxy.service.outbox import Outbox
from rhizome_proxy.service.route import ENGINE_LOST, Departure, Route, is_loss, may_try_next
from rhizome_telemetry.propagation import from_proto, to_proto
from rhizome_telemetry.tracing import tracing_enabled
from rhizome_transport.errors import EngineError

_WAIT_STEP_S = 0.1
_WINDOW_FULL = "CONTEXT_LENGTH_EXCEEDED"
_DRAINED = EngineError(grpc.StatusCode.UNAVAILABLE, "it ended what was open when it went away")
_log = logging.getLogger(__name__)


class _Verdict(enum.Enum):
    """What becomes of an event."""

    PASS = enum.auto()
    CHANGED = enum.auto()
    HIDE = enum.auto()


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request between its Submit and its final event.

    Attributes:
        request_id: unique among the peer's open requests.
        submit: as the peer sent it, or what is left of it: another engine may have to take it.
        continuation: what the peer has got.
        deadline: when the caller gives up, in seconds of the loop's clock; `None` is never.
        route: its way through the pool.
        link: the engine's stream that it is on.
        seen: the peer has got an event, so that another engine can only go on, not begin.
        begun: the engine that it is at has sent an event.
        cancelled: the peer asked to end it.
        satisfied: the peer asked to end it because it has all that it wants.
        wait_until: how long it waits for an engine to go on at, in seconds of the loop's clock.
    """

    request_id: str
    submit: Submit
    continuation: Continuation
    deadline: float | None
    route: Route
    link: EngineLink | None = None
    seen: bool = False
    begun: bool = False
    cancelled: bool = False
    satisfied: bool = False
    wait_until: float = 0.0


class PeerSession:
    """The requests of one downstream Connect stream.

    Nothing here awaits, so each frame is handled as a whole.

    Args:
        router: chooses engines.
        outbox: takes the frames for the peer.
        peer_name: who the peer is, for the engines' logs.
        window_frames: frames with events that each engine may send ahead of the peer.
    """

    def __init__(self, router: Router, outbox: Outbox, *, peer_name: str, window_frames: int) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.draining = False
        self._router = router
        self._outbox = outbox
        self._peer_name = peer_name
        self._window_frames = window_frames
        self._requests: dict[str, OpenRequest] = {}
        self._links: dict[str, EngineLink] = {}
        self._leaving: list[tuple[OpenRequest, EngineError, Departure]] = []
        self._loop = asyncio.get_running_loop()

    @property
    def open_requests(self) -> int:
        """Requests without a final event."""
        return len(self._requests)

    # From the peer

    def handle(self, payload: bytes) -> None:
        """Handle a serialised ClientFrame.

        Raises:
            EngineError: the frame breaks the contract (INVALID_ARGUMENT).
        """
        frame = frames.parse_client_frame(payload)
        match frame.WhichOneof("frame"):
            case "submit":
                self._submit(frame.submit)
            case "cancel":
                self._cancel(frame.cancel)
            case "credit":
                self._outbox.add_credit(frame.credit.frames)
            case "ping":
                self._outbox.put_control(frames.pong(frame.ping.nonce))
            case "call":
                error = EngineError(
                    grpc.StatusCode.UNIMPLEMENTED,
                    "a proxy takes no Call frames; call the method of EngineService over gRPC",
                )
                self._outbox.put_control(frames.call_failed(frame.call.call_id, error))
            case "hello":
                raise EngineError(
                    grpc.StatusCode.INVALID_ARGUMENT, "a second Hello came; one opens the stream, once"
                )
            case _:
                _log.warning("peer %s sent a frame of an unknown kind; it is ignored", self._peer_name)

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
        for request in self._requests.values():
            request.route.end("CANCELLED", "the peer is gone")
        self._requests.clear()

    def _submit(self, submit: Submit) -> None:
        request_id = submit.request.request_id
        route = Route(
            self._router, "Generate", submit.request, submit.request.model, from_proto(submit.trace)
        )
        refusal = self._refusal(request_id)
        if refusal is not None:
            route.end(refusal.code.name, refusal.message)
            self._outbox.put_events(frames.request_failed(request_id, refusal))
            return
        now, deadline = self._loop.time(), None
        limits = [self._router.timeout_s] if self._router.timeout_s is not None else []
        if submit.HasField("timeout"):
            limits.append(submit.timeout.ToNanoseconds() / 1e9)
        if limits:
            deadline = now + min(limits)
        request = OpenRequest(request_id, submit, Continuation(submit.request, now), deadline, route)
        self._requests[request_id] = request
        self.idle.clear()
        self._dispatch(request)

    def _refusal(self, request_id: str) -> EngineError | None:
        if not request_id:
            return EngineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "request_id is empty; on Connect it names the request in every event, so give one",
                param="request_id",
            )
        if request_id in self._requests:
            return EngineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"request_id {request_id!r} is open on this stream; give each request an id of its own",
                param="request_id",
            )
        if self.draining:
            return EngineError(
                grpc.StatusCode.UNAVAILABLE, "this proxy is shutting down; use another one", reason="DRAINING"
            )
        return None

    def _cancel(self, cancel: Cancel) -> None:
        request = self._requests.get(cancel.request_id)
        if request is None:
            return
        request.cancelled = True
        request.satisfied = cancel.satisfied
        if request.link is not None:
            request.link.send(frames.cancel(cancel))
        else:
            self._end_cancelled(request)

    # Towards the engines

    def _dispatch(self, request: OpenRequest) -> None:
        """Send a request to the next engine, or tell the peer that nobody takes it."""
        submit = request.submit
        try:
            if request.deadline is not None:
                left_s = request.deadline - self._loop.time()
                if left_s <= 0:
                    raise EngineError(
                        grpc.StatusCode.DEADLINE_EXCEEDED, "the time given ran out before an engine took it"
                    )
                submit.timeout.FromNanoseconds(int(left_s * 1e9))
            attempt = request.route.next_attempt()
        except EngineError as error:
            self._wait_or_fail(request, error)
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
        request.link.send(ClientFrame(submit=submit).SerializeToString())

    def _wait_or_fail(self, request: OpenRequest, error: EngineError) -> None:
        """No engine takes the request now; one that has begun is worth a moment until one does."""
        if not request.seen or not may_try_next(error):
            self._fail(request, error)
        elif self._loop.time() < request.wait_until:
            request.link = None
            request.route.forgive()
            self._loop.call_later(_WAIT_STEP_S, self._dispatch_again, request)
        else:
            self._fail(request, request.route.broken_off(error))

    def _dispatch_again(self, request: OpenRequest) -> None:
        if self._requests.get(request.request_id) is request and request.link is None:
            self._dispatch(request)

    def _leave(self, request: OpenRequest, error: EngineError, why: Departure) -> None:
        """The engine refused the request or was lost: another one takes it, or goes on with it."""
        continuation = request.continuation
        try:
            request.route.leave(error, why, seen=request.seen, possible=continuation.possible)
        except EngineError as verdict:
            if not request.cancelled:
                self._fail(request, verdict)
                return
        if request.cancelled:
            self._end_cancelled(request)
            return
        request.begun = False
        if request.seen and why is Departure.LOST:
            request.wait_until = self._loop.time() + self._router.resume_wait_s
            if not continuation.resume():
                self._finish(request)
                return
        self._dispatch(request)

    # From the engines

    def _on_frame(self, link: EngineLink, payload: bytes) -> None:
        """Pass an engine's frame on: as the very same bytes, unless something in it is not for the peer."""
        frame = RelayFrame.FromString(payload)
        if len(UnknownFieldSet(frame)):  # whatever EngineFrame has beside events
            payload, load = frames.split_control(payload)
            if load is not None:
                link.backend.observe_load(load)
            frame = RelayFrame.FromString(payload)
        hidden: list[int] = []
        changed = False
        requests = self._requests
        for index, event in enumerate(frame.events):
            request = requests.get(event.request_id)
            if request is None or request.link is not link:
                hidden.append(index)
            elif event.final or not (continuation := request.continuation).streaming:
                verdict = self._on_event(request, event)
                changed |= verdict is _Verdict.CHANGED
                if verdict is _Verdict.HIDE:
                    hidden.append(index)
            else:
                continuation.log += event.response
        if len(hidden) < len(frame.events):
            for index in reversed(hidden):
                del frame.events[index]
            if hidden or changed:
                payload = frame.SerializeToString()
            self._outbox.put_events(payload, link.consumed)
        elif hidden:
            link.consumed()
        # Only now, so that what a request's end adds to the outbox comes after what it has in this frame.
        leaving, self._leaving = self._leaving, []
        for departure in leaving:
            self._leave(*departure)

    def _on_event(self, request: OpenRequest, event: RelayEvent) -> _Verdict:
        """Look at an event that is not just more tokens."""
        if event.HasField("status"):
            return self._on_status(request, event)
        if not request.begun:
            request.begun = True
            request.route.answered()
        continuation = request.continuation
        response = event.response
        if event.final and not request.cancelled and self._was_drained(request, response):
            self._leaving.append((request, _DRAINED, Departure.LOST))
            return _Verdict.HIDE
        told = continuation.take(response, self._loop.time())
        if event.final:
            cancelled = request.cancelled and not request.satisfied
            if tracing_enabled():
                finished = GenerateResponse.FromString(response).finished
                cancelled = finished.reason == FINISH_REASON_CANCELLED
            self._end(request, "CANCELLED" if cancelled else "OK")
        if told is None:
            return _Verdict.HIDE
        request.seen = True
        if told is response:
            return _Verdict.PASS
        event.response = told
        return _Verdict.CHANGED

    def _on_status(self, request: OpenRequest, event: RelayEvent) -> _Verdict:
        error = EngineError.from_status(event.status)
        assert request.link is not None
        lost = is_loss(error) and (request.begun or error.reason == ENGINE_LOST)
        if lost:
            request.link.backend.suspect(f"it lost a request: {error.message}")
        if lost or (not request.begun and may_try_next(error)):
            self._leaving.append((request, error, Departure.LOST if lost else Departure.REFUSED))
            return _Verdict.HIDE
        if request.begun or not request.seen:
            self._end(request, error.code.name, error.message, failed=not request.seen)
            return _Verdict.PASS
        if error.reason == _WINDOW_FULL:
            event.response = request.continuation.end(self._loop.time())
            self._end(request, "OK")
        else:
            error = request.route.broken_off(error)
            event.status.CopyFrom(error.to_status())
            self._end(request, error.code.name, error.message)
        return _Verdict.CHANGED

    def _was_drained(self, request: OpenRequest, response: bytes) -> bool:
        """Whether an engine that is going away ended a request which nobody had cancelled."""
        assert request.link is not None
        if request.link.backend.healthy:
            return False
        return GenerateResponse.FromString(response).finished.reason == FINISH_REASON_CANCELLED

    def _on_lost(self, link: EngineLink, error: EngineError) -> None:
        """An engine's stream ended: what had not started goes elsewhere, the rest fails."""
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
            self._leave(request, error, why)

    # Ends

    def _fail(self, request: OpenRequest, error: EngineError) -> None:
        self._end(request, error.code.name, error.message)
        self._outbox.put_events(frames.request_failed(request.request_id, error))

    def _finish(self, request: OpenRequest) -> None:
        """End a request that had got all its tokens before its engine was lost."""
        self._end(request, "OK")
        response = request.continuation.end(self._loop.time())
        self._outbox.put_events(frames.request_finished(request.request_id, response))

    def _end_cancelled(self, request: OpenRequest) -> None:
        """End a request that the peer has cancelled and whose engine can no longer say so."""
        self._end(request, "OK" if request.satisfied else "CANCELLED")
        self._outbox.put_events(frames.request_cancelled(request.request_id))

    def _end(self, request: OpenRequest, code: str, message: str = "", *, failed: bool = False) -> None:
        request.route.end(code, message, failed=failed)
        del self._requests[request.request_id]
        if not self._requests:
            self.idle.set()
