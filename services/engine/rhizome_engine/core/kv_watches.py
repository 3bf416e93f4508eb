"""`WatchKvEvents` inside the frame stream.

A call is answered once there is something to tell, and then it is over; whoever can take more calls again
(`rhizome_transport.kv_watch`). A slow reader therefore has nothing of its own here but one call, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsRequest, WatchKvEventsResponse
from rhizome.engine.v1.frames_pb2 import Call, CallResult
from rhizome_engine.core.kv_event_log import NAMESPACE_WITH_TOKENS, KvEventLog
from rhizome_engine.kvcache.cache_survey import CacheSurvey
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import Peer

_MOST_WATCHES = 256
_MOST_MESSAGES = 256
"""In one answer; more would hold up the step."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """A call that waits, with the first sequence number it wants; None for a snapshot."""

    peer: Peer
    call_id: str
    start: int | None
    with_token_ids: bool


class KvWatches:
    """Calls of `WatchKvEvents` that wait for news.

    Args:
        log: of the core's cache.
        survey: looks at the cache, for snapshots with tokens.
        instance_id: of the core.
        reply: sends an answer.
    """

    def __init__(
        self,
        log: KvEventLog,
        survey: CacheSurvey,
        instance_id: str,
        reply: Callable[[Peer, CallResult], None],
    ) -> None:
        self._log = log
        self._survey = survey
        # Serialised messages that are joined are one message.
        self._suffix = WatchKvEventsResponse(instance_id=instance_id).SerializeToString()
        self._reply = reply
        self._watches: list[_Watch] = []

    def add(self, peer: Peer, call: Call) -> None:
        """Take a call; `tell` answers it.

        Raises:
            DecodeError: the request is no WatchKvEventsRequest.
            EngineError: RESOURCE_EXHAUSTED, too many wait already; PERMISSION_DENIED, token ids are asked for
                by a peer that came in over gRPC.
        """
        request = WatchKvEventsRequest.FromString(call.request)
        if request.with_token_ids and peer.relayed:
            text = "token ids are prompts, and are not told over gRPC: leave with_token_ids out"
            raise EngineError(grpc.StatusCode.PERMISSION_DENIED, text)
        if len(self._watches) >= _MOST_WATCHES:
            text = f"{_MOST_WATCHES} readers watch the cache already; close some, or share one among them"
            raise EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        start = request.start_sequence if request.HasField("start_sequence") else None
        self._watches.append(_Watch(peer, call.call_id, start, request.with_token_ids))

    def cancel(self, peer: Peer, call_id: str) -> None:
        """Forget a call; unknown ones are ignored."""
        self._watches = [
            watch for watch in self._watches if watch.peer is not peer or watch.call_id != call_id
        ]

    def forget(self, peer: Peer) -> None:
        """Forget all calls of a peer that is gone."""
        self._watches = [watch for watch in self._watches if watch.peer is not peer]

    def tell(self) -> None:
        """End a step: answer every call that has something to hear of."""
        self._log.commit()
        if not self._watches:
            return
        waiting: list[_Watch] = []
        snapshots: dict[bool, bytes] = {}
        for watch in self._watches:
            with_ids = watch.with_token_ids
            known = None
            if watch.start is not None:
                known = self._log.since(watch.start, _MOST_MESSAGES, with_token_ids=with_ids)
            if known is None:
                if with_ids not in snapshots:
                    snapshots[with_ids] = self._snapshot(with_ids)
                known = [snapshots[with_ids]]
            if known:
                self._answer(watch, known)
            else:
                waiting.append(watch)
        self._watches = waiting

    def _snapshot(self, with_token_ids: bool) -> bytes:
        if with_token_ids:
            return self._log.snapshot_with_token_ids(self._survey.nodes(NAMESPACE_WITH_TOKENS))
        return self._log.snapshot()

    def _answer(self, watch: _Watch, messages: list[bytes]) -> None:
        for number, message in enumerate(messages, start=1):
            response = message + self._suffix
            final = number == len(messages)
            self._reply(watch.peer, CallResult(call_id=watch.call_id, response=response, final=final))
