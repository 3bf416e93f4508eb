"""What arrived for one request or call and was not read yet."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from rhizome.engine.v1.frames_pb2 import CallResult
from rhizome.engine.v1.generate_pb2 import GenerateResponse, TokenDelta
from rhizome.engine.v1.relay_pb2 import RelayEvent
from rhizome_transport.deltas import merge_delta
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)


Arrived = list[int] | GenerateResponse
"""Token ids that came without text or log probabilities, or any other event."""

DRAINING = "DRAINING"
"""The reason with which who is going away refuses what is new."""

_OTHERS_MAY_TAKE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})

_MOST_MERGED = 256
"""Tokens in one delta; a reader that comes back after long can then stop between two of them."""
_MOST_KNOWN = 65_536
_LONGEST_KNOWN = 16
_known_deltas: dict[bytes, tuple[int, ...]] = {}
"""Serialised deltas of a token or two. They are most of all events, and there are only so many tokens."""


class Cancel(Protocol):
    """Asks for a request's end."""

    def __call__(self, request_id: str, *, satisfied: bool = False) -> None:
        """End the request of that id; `satisfied` where its reader has all that it wants."""


class RequestInbox:
    """The events of one request, for a reader that is called. Deltas that were not taken yet are one delta.

    Args:
        on_arrival: called when there is something new to take: it may take, cancel and close, but must not
            wait.

    Attributes:
        has_news: something came, and the reader was not told yet.
        used: something came.
        submit: the serialised frame that asked for it, until something came.
        cancel: asks the peer that has it to end it, by its id.
        tokens: what it may cost, prompt and output together.
        tried: who refused it or was lost with it.
    """

    __slots__ = (
        "_error",
        "_items",
        "_last_came",
        "_on_arrival",
        "cancel",
        "has_news",
        "submit",
        "tokens",
        "tried",
        "used",
    )

    def __init__(self, on_arrival: Callable[[], None], tokens: int = 0) -> None:
        self.tokens = tokens
        self.tried: tuple[object, ...] = ()
        self._on_arrival: Callable[[], None] | None = on_arrival
        self._items: deque[Arrived] = deque()
        self._error: EngineError | None = None
        self._last_came = False
        self.has_news = False
        self.used = False
        self.submit: bytes | None = None
        self.cancel: Cancel = lambda request_id, *, satisfied=False: None

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive."""
        return self._last_came or self._error is not None

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return self._on_arrival is not None

    @property
    def movable(self) -> EngineError | None:
        """Why it ended, where somebody else may take it: nothing came yet, and it is still wanted."""
        error = self._error
        if error is None or self.used or self.submit is None or not self.wanted:
            return None
        return error if error.code in _OTHERS_MAY_TAKE else None

    def take_submit(self) -> bytes | None:
        """What to ask somebody else, once; `None` where nobody waits any more."""
        frame, self.submit, self._error, self.has_news = self.submit, None, None, False
        return frame if self.wanted else None

    def take(self) -> Arrived | None:
        """The next event; `None` when there is none yet, or none any more.

        Raises:
            EngineError: how it ended, where it did not end well, once all events before that were taken.
        """
        if self._items:
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        return None

    def put(self, event: RelayEvent) -> bool:
        """Take one event; events after the last are ignored. The reader is told by `tell`.

        Returns:
            Whether nothing more will arrive.
        """
        if self._last_came or self._error is not None:
            return True
        payload = event.response
        token_ids = _known_deltas.get(payload)
        if token_ids is not None:
            self.used = True
            if self._on_arrival is not None:
                items = self._items
                last = items[-1] if items else None
                if type(last) is list and len(last) < _MOST_MERGED:
                    last.extend(token_ids)
                else:
                    items.append([*token_ids])
            self._last_came = final = event.final
            self.has_news = True
            return final
        elif event.HasField("status"):
            self._error = EngineError.from_status(event.status)
        elif payload:
            self._put_other(payload, event.final)
        self.has_news = True
        return self.ended

    def fail(self, error: EngineError) -> None:
        """End with an error, and tell the reader."""
        if self.end(error):
            self.tell()

    def end(self, error: EngineError) -> bool:
        """End with an error, of which the reader is not told yet; False where it has ended before."""
        if self.ended:
            return False
        self._error = error
        return True

    def tell(self) -> None:
        """Tell the reader that something came."""
        self.has_news = False
        if self._on_arrival is not None:
            try:
                self._on_arrival()
            except Exception:  # one reader's bug must not end the stream that all requests share
                _log.exception("a reader of engine events failed")

    def abandon(self) -> None:
        """Keep nothing more; only the end is waited for, so that the id is not used again before it."""
        self._on_arrival = None
        self._items.clear()

    def _put_other(self, payload: bytes, final: bool) -> None:
        self.used = True
        self.submit = None
        try:
            response = GenerateResponse.FromString(payload)
        except DecodeError:
            self._error = EngineError(grpc.StatusCode.INTERNAL, "the engine sent what is no event")
            return
        self._last_came = final or response.HasField("finished")
        delta = response.delta
        arrived: Arrived = response
        if delta.token_ids and not delta.logprobs and not delta.text:
            arrived = [*delta.token_ids]
            if len(payload) <= _LONGEST_KNOWN and len(_known_deltas) < _MOST_KNOWN:
                _known_deltas[payload] = tuple(arrived)
        items = self._items
        if self._on_arrival is not None and not (items and _merge(items[-1], arrived)):
            items.append(arrived)


def as_response(arrived: Arrived) -> GenerateResponse:
    """The event as the contract has it."""
    return GenerateResponse(delta=TokenDelta(token_ids=arrived)) if isinstance(arrived, list) else arrived


def _merge(earlier: Arrived, later: Arrived) -> bool:
    """Add `later` to `earlier` if both are deltas of the same kind; whether they were."""
    if isinstance(later, list):
        if not isinstance(earlier, list) or len(earlier) >= _MOST_MERGED:
            return False
        earlier.extend(later)
        return True
    if isinstance(earlier, list) or len(earlier.delta.token_ids) >= _MOST_MERGED:
        return False
    return merge_delta(earlier, later)


class CallInbox:
    """The answers to one call, for a reader that waits."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._error: EngineError | None = None
        self._last_came = False
        self.used = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive."""
        return self._last_came or self._error is not None

    def put(self, result: CallResult) -> None:
        """Take one answer; answers after the last are ignored."""
        if self.ended:
            return
        if result.HasField("status"):
            self.fail(EngineError.from_status(result.status))
            return
        if result.HasField("response"):
            self.used = True
            self._items.append(result.response)
        self._last_came = result.final
        self._arrived.set()

    def fail(self, error: EngineError) -> None:
        """End with an error; the reader gets what arrived before first."""
        if not self.ended:
            self._error = error
            self._arrived.set()

    async def read(self) -> bytes | None:
        """The next answer, or `None` after the last.

        Raises:
            EngineError: how it ended, where it did not end well.
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._last_came:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._items.popleft()
