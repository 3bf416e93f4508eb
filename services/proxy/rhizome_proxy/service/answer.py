"""What the caller of one request gets, whichever RPC it came in by and however many engines it takes."""

from __future__ import annotations

import time
from typing import Final

from rhizome_proxy.service.route import ENGINE_LOST, Attempt, Departure, Route, is_loss, may_try_next
from rhizome_transport.continuation import Continuation
from rhizome_transport.errors import EngineError

WAIT_STEP_S: Final = 0.1
"""How long to wait before engines are looked for again."""

_WINDOW_FULL: Final = "CONTEXT_LENGTH_EXCEEDED"


class Answer:
    """One request from its first attempt to its end.

    Args:
        route: its way through the pool.
        continuation: what its caller has got; `None` for a call that has one answer, which comes whole.
        resume_wait_s: how long it waits for an engine to go on at.

    Attributes:
        seen: the caller has got something, so that another engine can only go on, not begin.
        begun: the engine that it is at has sent something.
    """

    __slots__ = ("_continuation", "_resume_wait_s", "_route", "_wait_until", "begun", "seen")

    def __init__(self, route: Route, continuation: Continuation | None, resume_wait_s: float) -> None:
        self.seen = False
        self.begun = False
        self._route = route
        self._continuation = continuation
        self._resume_wait_s = resume_wait_s
        self._wait_until = 0.0

    def next_attempt(self) -> Attempt | None:
        """Begin at the next engine, `None` where none takes it now and a request that has begun should wait.

        Raises:
            EngineError: what the caller is told, as nobody takes it.
        """
        try:
            return self._route.next_attempt()
        except EngineError as error:
            if not self.seen or not may_try_next(error):
                raise
            if time.monotonic() >= self._wait_until:
                # UNAVAILABLE promises that nothing was emitted, and a caller would send the request again.
                raise self._route.broken_off(error) from None
            self._route.forgive()
            return None

    def take(self, event: bytes) -> bytes | None:
        """Note what an engine says; returns it as the caller should see it, `None` where it has that."""
        if not self.begun:
            self.begun = True
            self._route.answered()
        told = event if self._continuation is None else self._continuation.take(event)
        self.seen |= told is not None
        return told

    def departure(self, error: EngineError, *, said: bool) -> Departure | None:
        """Why `error` ends the attempt and not the request; `None` where it ends the request.

        Args:
            error: how the engine, or its connection, ended the request.
            said: the engine said so in its own words.
        """
        if is_loss(error) and (self.begun or error.reason == ENGINE_LOST):
            if said and self._route.attempt is not None:
                self._route.attempt.backend.suspect(f"it lost a request: {error.message}")
            return Departure.LOST
        if self.begun or not may_try_next(error):
            return None
        return Departure.REFUSED if said else Departure.UNREACHED

    def broke(self, error: EngineError, why: Departure | None) -> bytes | None:
        """An engine does not finish the answer: another one takes the request, or goes on with it.

        Returns:
            The last event, where the caller has got all before it.

        Raises:
            EngineError: what the caller is told, as the request goes nowhere else.
        """
        continuation = self._continuation
        if why is None:
            if self.begun or not self.seen or continuation is None:
                raise error
            # It went on here, and this engine declines.
            if error.reason == _WINDOW_FULL:
                return continuation.end()
            raise self._route.broken_off(error)
        possible = continuation is not None and continuation.possible
        self._route.leave(error, why, seen=self.seen, possible=possible)
        self.begun = False
        if not self.seen or why is not Departure.LOST:
            return None
        assert continuation is not None
        self._wait_until = time.monotonic() + self._resume_wait_s
        return None if continuation.resume() else continuation.end()

    def end(self, code: str = "OK", message: str = "") -> None:
        """End the request; further calls do nothing."""
        tokens = None if self._continuation is None else self._continuation.tokens
        self._route.end(code, message, failed=code != "OK" and not self.seen, tokens=tokens)
