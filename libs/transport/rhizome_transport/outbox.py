"""What waits to be sent to one peer.

A peer pays with credit for frames that hold events. Without credit its events stay here and merge: each
request keeps at most one `started`, one growing `prompt_logprobs`, one growing delta and one end, however
long the peer sleeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rhizome.engine.v1.frames_pb2 import CallResult, EngineFrame, Pong, RequestEvent, Welcome
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.deltas import merge_delta
from rhizome_transport.event_parts import event_field, tokens_field


@dataclass(slots=True)
class _Tokens:
    """Tokens of a request without log probabilities or text: most of all events, and never a message."""

    request_id: str
    token_ids: list[int]


class Outbox:
    """Collects events and answers and packs them into one frame at a time.

    Args:
        credit: frames with events that may be sent before more credit comes.
    """

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self._events: list[RequestEvent | _Tokens] = []
        self._newest: dict[str, RequestEvent | _Tokens] = {}
        self._answers = EngineFrame()

    @property
    def waiting_events(self) -> int:
        """Events that were not sent yet, after merging."""
        return len(self._events)

    def put(self, event: RequestEvent) -> None:
        """Add one event of a request; it is the outbox's from now on: later ones may be merged into it."""
        request_id = event.request_id
        newest = self._newest.get(request_id)
        if isinstance(newest, RequestEvent) and merge_delta(newest.response, event.response):
            newest.final = event.final
            return
        self._events.append(event)
        self._newest[request_id] = event

    def put_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Add tokens of a request that has neither log probabilities nor text, and does not end with them."""
        newest = self._newest.get(request_id)
        if type(newest) is _Tokens:
            newest.token_ids.extend(token_ids)
            return
        self._newest[request_id] = tokens = _Tokens(request_id, [*token_ids])
        self._events.append(tokens)

    def put_result(self, result: CallResult) -> None:
        """Add an answer to a call; answers cost no credit."""
        self._answers.call_results.append(result)

    def put_welcome(self, welcome: Welcome) -> None:
        """Add the answer to Hello."""
        self._answers.welcome.CopyFrom(welcome)

    def put_pong(self, nonce: int) -> None:
        """Add the answer to Ping."""
        self._answers.pong.CopyFrom(Pong(nonce=nonce))

    def discard(self, request_id: str) -> None:
        """Forget what was not sent of one request."""
        if self._newest.pop(request_id, None) is not None:
            self._events = [event for event in self._events if event.request_id != request_id]
            self._newest = {event.request_id: event for event in self._events}

    def take(self, step: int, load: Load | None = None) -> bytes | None:
        """Pack a serialised EngineFrame, or `None` when there is nothing that may be sent.

        Taking a frame with events costs one credit.
        """
        frame, events = self._answers, b""
        if self._newest and self.credit > 0:
            self.credit -= 1
            events = b"".join(
                [
                    tokens_field(one.request_id, one.token_ids)
                    if isinstance(one, _Tokens)
                    else event_field(one)
                    for one in self._events
                ]
            )
            self._events = []
            self._newest = {}
        if load is not None:
            frame.load.CopyFrom(load)
        if not events and not frame.ByteSize():
            return None
        self._answers = EngineFrame()
        frame.step = step
        return frame.SerializeToString() + events

    def take_answers(self) -> bytes | None:
        """Pack only what costs no credit, to answer between steps."""
        if not self._answers.ByteSize():
            return None
        frame, self._answers = self._answers, EngineFrame()
        return frame.SerializeToString()
