"""The core's loop: receive, schedule and run a step, emit.

One thread does it all. While there is work the socket is only glanced at between steps; while there is none
the loop sleeps on the socket.

Open requests are kept by who asked: a peer, or a call such as `Embed` that stands in its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Set as AbstractSet

import grpc
from google.protobuf.message import DecodeError

from rhizome.engine.v1.frames_pb2 import Call, Cancel, ClientFrame, Submit
from rhizome.engine.v1.load_pb2 import Load
from rhizome_engine.core.big_calls import BIG_METHODS, BigCalls
from rhizome_engine.core.calls import ADMIN_METHODS, CallHandler
from rhizome_engine.core.embed_call import EmbedCall, aborted, drained
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import Event, FailedEvent, FinishedEvent, TokensEvent
from rhizome_engine.core.kv_watches import KvWatches
from rhizome_engine.core.long_calls import DrainCall, WarmPrefixCall, failed
from rhizome_engine.core.orphan_watch import OrphanWatch
from rhizome_engine.core.request_histograms import RequestHistograms
from rhizome_engine.core.request_log import log_end
from rhizome_engine.core.served_model import ServedModel
from rhizome_engine.core.spans import record_embed, record_request
from rhizome_engine.core.start_delay import StartDelay
from rhizome_engine.core.translate import refused, to_request, to_request_event
from rhizome_engine.core_pulse import PulseWriter
from rhizome_engine.scheduler import load as scheduler_load
from rhizome_engine.scheduler.request import Request
from rhizome_telemetry.logs import about
from rhizome_telemetry.propagation import from_proto
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import FrameServer, Peer

_log = logging.getLogger(__name__)

_IDLE_POLL_MS = 200
_GRAMMAR_POLL_MS = 2
"""While every open request waits for its grammar to be compiled."""
_LOAD_INTERVAL_S = 0.25
_LONG_CALLS = ("Drain", "Embed", "WarmPrefix", "WatchKvEvents")

Owner = Peer | WarmPrefixCall | EmbedCall
"""Whose a request is."""


class CoreServer:
    """Serves an engine core to its peers.

    Args:
        frames: where peers come from.
        core: the engine core.
        model: what is served.
        orphans: says when nobody needs this process any more.
        start_delay: how long an idle engine waits for company; not at all when absent.
        pulse: tells the front that the loop goes on; nobody is told when absent.
    """

    def __init__(
        self,
        frames: FrameServer,
        core: EngineCore,
        model: ServedModel,
        orphans: OrphanWatch,
        start_delay: StartDelay | None = None,
        pulse: PulseWriter | None = None,
    ) -> None:
        self._frames = frames
        self._core = core
        self._model = model
        self._orphans = orphans
        self._start_delay = start_delay or StartDelay()
        self._pulse = pulse
        self._histograms = RequestHistograms(core.token_gaps)
        self._calls = CallHandler(core, model, self._histograms, self._abort, frames.counters)
        self._open: dict[tuple[Owner, str], Request] = {}
        self._long: dict[tuple[Peer, str], WarmPrefixCall | EmbedCall] = {}  # by asker and id of the call
        self._big_calls = BigCalls()
        self._load_calls: list[tuple[Peer, Call]] = []
        self._drain_calls: list[tuple[Peer, DrainCall]] = []
        self._kv_watches = KvWatches(core.kv_events, core.cache_survey, model.info.instance_id, frames.reply)
        self._draining = False
        self._stopping = False
        self._has_idle_work = False
        self._step = 0
        self._next_load = 0.0
        self._last_load: scheduler_load.Load | None = None

    def stop(self) -> None:
        """End `run` after the current step; safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`, or until the front has been gone for too long.

        Raises:
            Exception: the model runner failed several times in a row; the process should be started anew.
        """
        while not self._stopping:
            if self._pulse is not None:
                self._pulse.went_round(self._core.num_steps, runnable=self._core.is_runnable)
            for peer, frame in self._frames.poll(self._poll_ms()):
                self._handle(peer, frame)
            for peer in self._frames.take_gone():
                self._forget(peer)
            is_idle = not self._core.has_work
            if self._core.has_work and not self._start_delay.left_ms(True):
                self._step += 1
                for event in self._core.step():
                    self._tell(event)
            else:
                self._core.tick()
            if self._load_calls:
                self._answer_load_calls()
            if self._big_calls:
                self._answer_big_call()
            if self._drain_calls:
                self._continue_drain()
            self._kv_watches.tell()
            self._frames.flush(self._step, self._load_when_due())
            self._has_idle_work = is_idle and self._core.use_idle_time()
            if self._orphans.is_orphaned(self._frames.peers):
                _log.warning("no front for %.0f s; the core stops", self._orphans.grace_s)
                return

    def _poll_ms(self) -> int:
        """How long the socket may be slept on."""
        if self._big_calls:
            return 0
        delay_ms = self._start_delay.left_ms(self._core.has_work)
        if not self._core.has_work:
            return 0 if self._has_idle_work else _IDLE_POLL_MS
        return delay_ms if self._core.is_runnable else max(delay_ms, _GRAMMAR_POLL_MS)

    def _handle(self, peer: Peer, frame: ClientFrame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "submit":
            self._submit(peer, frame.submit)
        elif kind == "cancel":
            self._cancel(peer, frame.cancel)
        elif kind == "call":
            self._call(peer, frame.call)

    def _submit(self, peer: Peer, submit: Submit) -> None:
        request_id = submit.request.request_id
        try:
            self._check_not_draining()
            request = to_request(submit, peer, self._model.name, self._model.default_sampling)
            self._core.add(request)
        except EngineError as error:
            self._refuse(peer, request_id, error)
        except Exception:
            ids = about(from_proto(submit.trace), request_id)
            _log.exception("request %r of peer %s could not be read", request_id, peer.name, extra=ids)
            message = "the engine could not read this request; its log has the traceback"
            self._refuse(peer, request_id, EngineError(grpc.StatusCode.INTERNAL, message))
        else:
            self._open[peer, request_id] = request

    def _cancel(self, peer: Peer, cancel: Cancel) -> None:
        if self._core.cancel(cancel.request_id, peer, satisfied=cancel.satisfied):
            return
        owner = self._long.get((peer, cancel.request_id))
        if owner is not None:
            for request in owner.requests:
                self._core.cancel(request.request_id, owner)
        self._kv_watches.cancel(peer, cancel.request_id)

    def _check_not_draining(self) -> None:
        if self._draining:
            raise EngineError(
                grpc.StatusCode.UNAVAILABLE,
                "the engine is draining and takes no new requests; send it to another one",
                reason="DRAINING",
            )

    def _refuse(self, peer: Peer, request_id: str, error: EngineError) -> None:
        self._frames.emit(peer, refused(request_id, error))

    def _call(self, peer: Peer, call: Call) -> None:
        if peer.relayed and call.method in ADMIN_METHODS:
            message = f"{call.method} is for the engine's operator: use EngineAdminService on its own port"
            error = EngineError(grpc.StatusCode.PERMISSION_DENIED, message)
            self._frames.reply(peer, failed(call, error))
        elif peer.relayed and call.method == "GetCacheTree":  # the front leaves tokens out
            message = f"{call.method} cannot be called in a frame over gRPC: call the method itself"
            self._frames.reply(peer, failed(call, EngineError(grpc.StatusCode.PERMISSION_DENIED, message)))
        elif call.method in _LONG_CALLS:
            self._begin_long_call(peer, call)
        elif call.method in BIG_METHODS:
            try:
                self._big_calls.add(peer, call)
            except EngineError as error:
                self._frames.reply(peer, failed(call, error))
        elif call.method == "GetLoad":
            # Answered after the step, which goes out in the same frame: what ended in it is counted then.
            self._load_calls.append((peer, call))
        else:
            for result in self._calls.answer(call):
                self._frames.reply(peer, result)

    def _begin_long_call(self, peer: Peer, call: Call) -> None:
        try:
            if call.method == "Drain":
                self._drain_calls.append((peer, DrainCall(call)))
                _log.info("draining: %d requests are open", len(self._open))
                self._draining = self._calls.draining = True
            elif call.method == "WatchKvEvents":
                self._kv_watches.add(peer, call)
            elif call.method == "Embed":
                self._check_not_draining()
                embed = EmbedCall(peer, call, self._model)
                self._core.add_together(embed.requests)
                self._open.update({(embed, request.request_id): request for request in embed.requests})
                self._long[peer, call.call_id] = embed
            else:
                self._check_not_draining()
                warm = WarmPrefixCall(peer, call, self._model.name)
                self._core.add(warm.request)
                self._open[warm, warm.request.request_id] = warm.request
                self._long[peer, call.call_id] = warm
        except DecodeError:
            message = f"the request of {call.method} is no {call.method}Request"
            error = EngineError(grpc.StatusCode.INVALID_ARGUMENT, message)
            self._frames.reply(peer, failed(call, error))
        except EngineError as error:
            self._frames.reply(peer, failed(call, error))

    def _answer_big_call(self) -> None:
        waiting = self._big_calls.next()
        if waiting is not None:
            peer, call = waiting
            for result in self._calls.answer(call):
                self._frames.reply(peer, result)

    def _answer_load_calls(self) -> None:
        for peer, call in self._load_calls:
            for result in self._calls.answer(call):
                self._frames.reply(peer, result)
        self._load_calls.clear()

    def _tell(self, event: Event) -> None:
        owner: Owner = event.request.peer  # type: ignore[assignment] # given by this class
        if isinstance(owner, Peer):
            if isinstance(event, TokensEvent) and event.logprobs is None:
                self._frames.emit_tokens(owner, event.request.request_id, event.token_ids)
                return
            self._frames.emit(owner, to_request_event(event))
        elif isinstance(owner, EmbedCall):
            self._continue_embed(owner, event)
        if not isinstance(event, FinishedEvent | FailedEvent):
            return
        # The id may be in use again already, when a cancelled request's peer did not wait for its end.
        if self._open.get((owner, event.request.request_id)) is event.request:
            del self._open[owner, event.request.request_id]
        self._histograms.observe(event)
        log_end(event)
        if isinstance(owner, WarmPrefixCall):
            self._forget_long(owner)
            self._frames.reply(owner.asker, owner.finish(event, self._core))
        elif isinstance(owner, Peer):
            record_request(event, self._model.name)

    def _continue_embed(self, call: EmbedCall, event: Event) -> None:
        """Answer an `Embed` when all of it is done or one input failed, which ends the others."""
        result = call.take(event)
        if result is not None:
            self._frames.reply(call.asker, result)
        if result is None or not result.final:
            return
        error = EngineError.from_status(result.status) if result.HasField("status") else None
        record_embed(call, error, self._model.name)
        self._end_all_of(call)

    def _end_all_of(self, owner: Owner) -> int:
        """End the requests of somebody who is gone; returns how many those were."""
        ends = self._core.drop_peer(owner)
        if not isinstance(owner, Peer):
            self._forget_long(owner)
        for event in ends:
            self._histograms.observe(event)
            log_end(event)
            self._open.pop((owner, event.request.request_id), None)
            if isinstance(owner, Peer):
                record_request(event, self._model.name)
        return len(ends)

    def _forget(self, peer: Peer) -> None:
        calls = {owner for owner, _ in self._open if not isinstance(owner, Peer) and owner.asker is peer}
        ended = self._end_all_of(peer) + sum(map(self._end_all_of, calls))
        for call in calls:
            if isinstance(call, EmbedCall):
                gone = EngineError(grpc.StatusCode.CANCELLED, "the caller is gone")
                record_embed(call, gone, self._model.name)
        if ended:
            _log.info("cancelled %d requests of peer %s, which is gone", ended, peer.name)
        self._drain_calls = [(asker, call) for asker, call in self._drain_calls if asker is not peer]
        self._kv_watches.forget(peer)

    def _forget_long(self, owner: WarmPrefixCall | EmbedCall) -> None:
        if self._long.get(owner.key) is owner:
            del self._long[owner.key]

    def _abort(self, request_ids: AbstractSet[str]) -> None:
        for owner, open_id in list(self._open):
            if isinstance(owner, EmbedCall):
                if owner.request_id and owner.request_id in request_ids:
                    owner.why_cancelled = aborted()
                    self._core.cancel(open_id, owner)
            elif open_id in request_ids:
                self._core.cancel(open_id, owner)

    def _continue_drain(self) -> None:
        """Cancel what is open when a drain's time is over; answer all drains when nothing is open."""
        for _, drain in self._drain_calls:
            if drain.overdue and not drain.cancelled:
                drain.cancelled = len(self._open)
                for owner, request_id in list(self._open):
                    if isinstance(owner, EmbedCall):
                        owner.why_cancelled = drained()
                    self._core.cancel(request_id, owner)
        if not self._core.has_work:
            for peer, drain in self._drain_calls:
                self._frames.reply(peer, drain.result())
            self._drain_calls.clear()

    def _load_when_due(self) -> Load | None:
        """The load if it is time to tell it and it is news."""
        now = time.monotonic()
        if now < self._next_load:
            return None
        self._next_load = now + _LOAD_INTERVAL_S
        load = self._core.load()
        if load == self._last_load:
            return None
        self._last_load = load
        return self._calls.load()
