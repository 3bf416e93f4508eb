"""One request's way through the pool: which engine it goes to, which refused it, and the spans of it all."""

from __future__ import annotations

import enum
import logging
import time
from typing import Final

import grpc

from rhizome_proxy.pool.backend import Backend, State
from rhizome_proxy.router import USUAL_OUTPUT, Router
from rhizome_routing.admission import NotAdmitted, PriorityClass, TenantOverloaded, Ticket
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Placement
from rhizome_telemetry import semconv
from rhizome_telemetry.logs import about
from rhizome_telemetry.propagation import TraceParent
from rhizome_telemetry.rpc import end_rpc_span, start_client_span, start_server_span
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.split_request import SplitRequest

RETRY_AFTER_S: Final = 1.0
"""When to try again if nobody was ready; checks find an engine that came back faster than that."""

ENGINE_LOST: Final = "ENGINE_LOST"
CRASH_LOOP: Final = "CRASH_LOOP"

_LEAST_LOSSES: Final = 3
"""So many engines may be lost under a request that has not begun to answer, even where none may resume."""

_OPERATIONS: Final = {
    "Generate": semconv.OPERATION_TEXT_COMPLETION,
    "Embed": semconv.OPERATION_EMBEDDINGS,
}
"""In OpenTelemetry's words; to an engine a chat is tokens like any others."""

_TRY_NEXT: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
_log = logging.getLogger(__name__)


def may_try_next(error: EngineError) -> bool:
    """Whether another engine may take what this one refused before its first event."""
    return error.code in _TRY_NEXT


def is_loss(error: EngineError) -> bool:
    """Whether an engine says that what it had of the request is gone."""
    return error.reason == ENGINE_LOST or error.code is grpc.StatusCode.UNAVAILABLE


def engine_lost(backend: Backend, error: EngineError) -> EngineError:
    """What a caller is told who has read part of an answer that nobody will continue."""
    return EngineError(
        grpc.StatusCode.ABORTED,
        f"engine {backend.name} was lost while it answered ({error.message or error.code.name}); "
        "the answer is incomplete, send the request again",
        reason=ENGINE_LOST,
    )


def _crash_loop(losses: int, error: EngineError) -> EngineError:
    return EngineError(
        grpc.StatusCode.ABORTED,
        f"{losses} engines were lost one after another while they ran this request, the last one with: "
        f"{error.message or error.code.name}; it is not sent to another one, as it may be the cause",
        reason=CRASH_LOOP,
    )


def not_admitted(refusal: NotAdmitted) -> EngineError:
    """What a caller is told whose request the queue did not take, or gave up."""
    return EngineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        str(refusal),
        reason="" if isinstance(refusal, TenantOverloaded) else "QUEUE_FULL",
        retry_after_s=refusal.retry_after_s,
    )


class Departure(enum.Enum):
    """Why a request leaves an engine."""

    REFUSED = enum.auto()
    """The engine said so, before its first event."""
    UNREACHED = enum.auto()
    """The engine never had it."""
    LOST = enum.auto()
    """The engine had it, and it or its connection is gone."""


class Attempt:
    """A request at one engine, counted there until the attempt ends."""

    __slots__ = ("_lease", "_placement", "_span", "backend")

    def __init__(
        self, backend: Backend, method: str, parent: TraceParent, placement: Placement, tokens: int
    ) -> None:
        self.backend = backend
        self._placement = placement
        self._lease = backend.lease(tokens)
        self._span = start_client_span(method, parent, backend.spec.address)

    @property
    def trace_parent(self) -> TraceParent:
        """The engine's parent span."""
        return self._span.trace_parent

    def answered(self) -> None:
        """The engine sent its first event."""
        self._lease.answered()

    def end(self, code: str = "OK", message: str = "", *, failed: bool = False) -> None:
        """Give the place at the engine back; `failed` means that it refused or broke before an event."""
        self._lease.release(failed=failed)
        self._placement.end()
        end_rpc_span(self._span, code, message, server=False)


class Route:
    """One request: it goes to one engine after another until one takes it.

    Args:
        router: who knows the engines.
        method: method of EngineService.
        request: what is to be run; `None` for a call that is no generation.
        model: served name that is asked for; empty means any.
        parent: the caller's span.
    """

    def __init__(
        self,
        router: Router,
        method: str,
        request: SplitRequest | None,
        model: str,
        parent: TraceParent | None,
    ) -> None:
        self.attempt: Attempt | None = None
        self._router = router
        self._method = f"{ENGINE_SERVICE}/{method}"
        self._operation = _OPERATIONS.get(method, "")
        self._head = None if request is None else request.head
        self._ask = None if request is None else Ask.of_generation(request)
        self._model = model
        self._tried: set[str] = set()
        self._refusals: list[EngineError] = []
        self._lost_at: Backend | None = None
        self._goes_on: tuple[str, EngineError] | None = None
        self._losses = 0
        self._backend = ""
        self._began_at, self._first_byte_at = time.monotonic(), 0.0
        self._ticket: Ticket | None = None
        self._over = False
        router.grpc.open += 1
        router.budget.request()
        self._span = start_server_span(self._method, parent)
        if self._head is not None:
            self._span.set_attributes(
                {
                    semconv.REQUEST_ID: self._head.request_id or None,
                    semconv.GEN_AI_REQUEST_MODEL: self._head.model or None,
                }
            )

    def offer(self) -> Ticket | None:
        """Ask for a place at the engines; `None` where the request needs none. `end` gives it back.

        Raises:
            EngineError: RESOURCE_EXHAUSTED, too much waits already.
        """
        ask, request = self._ask, self._head
        if ask is None or request is None:
            return None
        priority = PriorityClass.NORMAL
        if request.priority:
            priority = PriorityClass.HIGH if request.priority > 0 else PriorityClass.LOW
        tokens = ask.prompt_tokens + (request.stop.max_tokens or USUAL_OUTPUT)
        tenant = request.tenant or request.cache_namespace
        try:
            queue = self._router.queue(self._model, http=False)
            self._ticket = queue.offer(tenant, priority, tokens) if queue is not None else None
        except NotAdmitted as refusal:
            raise not_admitted(refusal) from None
        return self._ticket

    def next_attempt(self) -> Attempt:
        """Begin the attempt at the best engine that was not tried.

        Raises:
            EngineError: nobody is left; RESOURCE_EXHAUSTED when an engine was full, else UNAVAILABLE.
        """
        backend = self._router.pick(self._ask, self._model, self._tried)
        if backend is None:
            raise self._nobody_left()
        self._tried.add(backend.name)
        self._backend = backend.name
        self._span.add_event(
            semconv.EVENT_PICK,
            {
                semconv.PICK_BACKEND: backend.name,
                semconv.PICK_POLICY: self._router.policy.name,
                semconv.PICK_IN_FLIGHT: backend.in_flight,
            },
        )
        placement = self._router.policy.place(backend, self._ask)
        tokens = self._ask.prompt_tokens if self._ask is not None else 0
        self.attempt = Attempt(backend, self._method, self._span.trace_parent, placement, tokens)
        return self.attempt

    def answered(self) -> None:
        """The engine sent its first event of this attempt."""
        if self.attempt is not None:
            self.attempt.answered()
            self._first_byte_at = self._first_byte_at or time.monotonic()
            self._count_resume()

    def _count_resume(self) -> None:
        """An answer went on elsewhere once somebody has taken it; before, nobody may be left who does."""
        if self._goes_on is None:
            return
        (lost, error), self._goes_on = self._goes_on, None
        self._router.resumed(lost)
        self._span.add_event(
            semconv.EVENT_RESUME, {semconv.PICK_BACKEND: lost, semconv.ERROR_TYPE: error.code.name}
        )
        _log.info(
            "a request went on elsewhere: backend %s was lost: %s", lost, error.message, extra=self._ids
        )

    def leave(self, error: EngineError, why: Departure, *, seen: bool = False, possible: bool = True) -> None:
        """End the attempt, so that another engine may take the request or go on with it.

        Args:
            error: what ended it.
            why: refusals cost the budget for retries, losses count towards a crash loop.
            seen: the caller has got an event.
            possible: another engine can go on with what the caller has got.

        Raises:
            EngineError: the request must not go elsewhere.
        """
        assert self.attempt is not None
        backend, router = self.attempt.backend, self._router
        self.attempt.end(error.code.name, error.message, failed=not seen)
        self.attempt = None
        if why is Departure.LOST:
            self._lose(backend, error, seen=seen, possible=possible)
            return
        _log.info("backend %s did not take a request: %s", backend.name, error.message, extra=self._ids)
        self._refusals.append(error)
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            backend.full(error.retry_after_s)
        elif why is Departure.REFUSED:
            backend.suspect(f"it refused a request: {error.message}")
        if why is Departure.REFUSED and not seen and not router.budget.take():
            router.counts.retries_denied += 1
            raise error
        router.counts.retries += 1

    def forgive(self) -> None:
        """Let engines be tried again that refused or were lost."""
        self._tried.clear()
        self._refusals.clear()

    def broken_off(self, error: EngineError) -> EngineError:
        """What a caller is told who has got part of the answer, where `error` ends the request."""
        return error if self._lost_at is None else engine_lost(self._lost_at, error)

    def end(
        self, code: str = "OK", message: str = "", *, failed: bool = False, tokens: int | None = None
    ) -> None:
        """End the request, and the attempt that is open; further calls do nothing.

        Args:
            code: name of the gRPC status, CANCELLED where the caller gave up.
            message: the status message.
            failed: the engine had not sent an event.
            tokens: that the caller has got; as many as expected when absent.
        """
        if self.attempt is not None:
            self.attempt.end(code, message, failed=failed)
            self.attempt = None
        end_rpc_span(self._span, code, message, server=True)
        if self._over:
            return
        self._over = True
        if self._ticket is not None:
            self._ticket.release(self._used(tokens))
        self._router.grpc.ended(
            self._model,
            self._backend,
            code,
            operation=self._operation,
            error="" if code == "OK" else code,
            duration_s=time.monotonic() - self._began_at,
            first_byte_s=self._first_byte_at - self._began_at if self._first_byte_at else 0.0,
            queue_s=self._ticket.waited_s if self._ticket is not None else 0.0,
        )
        if _log.isEnabledFor(logging.DEBUG):
            took_s = time.monotonic() - self._began_at
            place = self._backend or "nobody"
            _log.debug("%s ended: %s from %s in %.3f s", self._method, code, place, took_s, extra=self._ids)

    @property
    def _ids(self) -> dict[str, str]:
        """What log lines about the request say of it."""
        return about(self._span.trace_parent, "" if self._head is None else self._head.request_id)

    def _used(self, tokens: int | None) -> int | None:
        """What the request cost its tenant: nothing, where no engine had it."""
        if not self._backend:
            return 0
        return None if tokens is None or self._ask is None else self._ask.prompt_tokens + tokens

    def _lose(self, backend: Backend, error: EngineError, *, seen: bool, possible: bool) -> None:
        router = self._router
        self._lost_at = backend
        if backend.state is not State.DRAINING:  # a drain is not the request's fault
            self._losses += 1
        limit = router.max_resumes if seen else max(router.max_resumes, _LEAST_LOSSES)
        if self._losses > max(1, limit):
            router.counts.crash_loops += 1
            raise _crash_loop(self._losses, error)
        if not seen:
            router.counts.retries += 1
            return
        if not possible or self._losses > limit:
            raise engine_lost(backend, error)
        self._goes_on = self._goes_on or (backend.name, error)
        self._tried = {backend.name}  # those that were full may have room by now

    def _nobody_left(self) -> EngineError:
        """Say why no engine takes the request, and when to try again."""
        refusals, registry = self._refusals, self._router.registry
        hints = [error.retry_after_s for error in refusals if error.retry_after_s is not None]
        retry_after_s = min(hints, default=RETRY_AFTER_S)
        full = [error for error in refusals if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED]
        if full:
            return EngineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"every ready engine is full, {len(full)} of {len(registry)}: {full[-1].message}",
                reason=full[-1].reason,
                retry_after_s=retry_after_s,
            )
        states = "; ".join(
            f"{backend.name} is {backend.state.name.lower()}"
            + (f" ({backend.reason})" if backend.reason else "")
            for backend in registry
        )
        refused = f", {len(refusals)} tried and did not take it" if refusals else ""
        return EngineError(
            grpc.StatusCode.UNAVAILABLE,
            f"no engine can take the request: {len(registry)} known{refused}. {states}".rstrip(". ")
            + ". Try again when one is ready.",
            reason="NO_ENGINE_READY",
            retry_after_s=retry_after_s,
        )
