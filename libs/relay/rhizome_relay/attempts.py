"""Which backends an exchange has asked, and whether it may ask one more.

could not be reached    the next one, always
refused (429, 502, 503) the next one, within `max_attempts` and the proxy's budget for retries
lost before it answered another one, until so many were lost that the request may be the cause
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Iterable, Iterator
from typing import Final

from rhizome_relay import errors
from rhizome_relay.client import Client
from rhizome_relay.closing import Closing
from rhizome_relay.errors import HttpError
from rhizome_relay.picker import Ending, Target
from rhizome_relay.pool import OriginPool
from rhizome_relay.relay import Relay
from rhizome_relay.request import RelayRequest
from rhizome_relay.upstream import Upstream

_log = logging.getLogger(__name__)

_LEAST_LOSSES: Final = 3
"""So many backends may be lost under a request that nobody has answered, even where no stream may go on."""


class Attempts(Closing):
    """The part of an exchange that looks for a backend, as long as the client has heard nothing."""

    __slots__ = ("_losses", "_pool", "_refusal", "_retries", "_sent_at", "_targets")

    def __init__(self, relay: Relay, client: Client, request: RelayRequest) -> None:
        super().__init__(relay, client, request)
        self._pool: OriginPool
        self._targets: Iterator[Target] = iter(())
        self._refusal: HttpError | None = None
        self._retries = 0
        self._losses = 0
        self._sent_at = 0.0

    def cut(self) -> None:
        """Leave the backend, which is to go away."""
        raise NotImplementedError

    def heard_at(self) -> float:
        """When the backend last sent a piece of the answer, in the loop's time; 0 for never."""
        raise NotImplementedError

    def _send(self, upstream: Upstream) -> None:
        raise NotImplementedError

    async def _queue(self, picking: Awaitable[Iterable[Target]]) -> None:
        self._picked(await picking)

    def _picked(self, targets: Iterable[Target]) -> None:
        self.queue_s = time.perf_counter() - self._began
        self._targets = iter(targets)
        self._try_next(errors.NONE_READY)

    def _try_next(self, error: HttpError) -> None:
        """Try another target; `error` is for the client when there is none."""
        target = self._next_target()
        if target is None:
            self._fail(self._refusal or error)
        else:
            self._attempt(target)

    def _next_target(self) -> Target | None:
        try:
            return next(self._targets, None)
        except HttpError as error:
            self._refusal = error.with_traceback(None)  # which holds this exchange
        except Exception:
            _log.exception("the picker failed", extra=self.request.log_ids)
        return None

    def _attempt(self, target: Target) -> None:
        self._target = target
        self.attempts += 1
        self._answering = self._verbatim = False
        self._heard_at = 0.0
        self._retry_after_s = self.first_byte_s = 0.0
        try:
            self._lease = target.lease(self.cut, self.heard_at)
            self._pool = self._relay.pools.of(target.origin)
            # What is passed on as it arrives could not be sent again if an old connection were dead.
            upstream = self._pool.take() if self.request.held else None
            if upstream is None:
                self._run(self._connect(self._pool))
            else:
                self._send(upstream)
        except Exception as error:
            self._crash(error)

    async def _connect(self, pool: OriginPool, *, again: bool = False) -> None:
        began = time.perf_counter()
        upstream = None
        with contextlib.suppress(OSError):
            upstream = await pool.connect()
        self.connect_s += time.perf_counter() - began
        if upstream is not None:
            self._send(upstream)
        elif again:
            self._unanswered(Ending.LOST, "it closed the connection and takes no other")
        else:
            self._release(Ending.UNREACHABLE)
            self._try_next(errors.NONE_REACHED)

    def _another(self) -> Target | None:
        """A target for a retry, if there is one, the request can be sent again and the budget allows it."""
        if not self.request.held or self._retries + 1 >= self._relay.settings.max_attempts:
            return None
        target = self._next_target()
        if target is None or not self._relay.budget.take():
            return None
        self._retries += 1
        return target

    def _after_loss(self) -> Target | None:
        """A target in place of one that was lost; too many of them, and the request may be the cause."""
        self._losses += 1
        most = max(self._relay.settings.max_resumes, _LEAST_LOSSES)
        return self._next_target() if self.request.held and self._losses <= most else None

    def _unanswered(self, ending: Ending, reason: str) -> None:
        """The client has had nothing yet, so another backend may answer."""
        _log.warning("%s did not answer: %s", self._target.name, reason, extra=self.request.log_ids)
        self._release(ending)
        target = self._after_loss() if ending is Ending.LOST else self._another()
        if target is not None:
            self._client.deadline = self._total_at
            self._attempt(target)
        else:
            self._fail(self._refusal or errors.LOST)

    def _was_idle(self, upstream: Upstream | None) -> bool:
        return upstream is not None and upstream.reused and not upstream.answered and self.request.held
