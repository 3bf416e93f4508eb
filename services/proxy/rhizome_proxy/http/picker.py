"""The relay's picker over the pool: which backend gets an HTTP request, and what its answer says of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, cast

import orjson

from rhizome_backends.base import HttpServer
from rhizome_backends.text_continuation import TextContinuation, can_resume, output_limit
from rhizome_proxy.http.reading import operation_of, priority_of, read_ask, tenant_of
from rhizome_proxy.http.spans import begin_attempt, begin_request, end_attempt, end_request
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.router import USUAL_OUTPUT, Router
from rhizome_relay.errors import HttpError, bad_request, retry_after, unavailable
from rhizome_relay.picker import Ending, Outcome, Result
from rhizome_relay.request import RelayRequest
from rhizome_routing.admission import NotAdmitted, Ticket
from rhizome_routing.policies.ask import Ask
from rhizome_routing.prefix.chain import TEXT_TOKEN_BYTES
from rhizome_telemetry import semconv
from rhizome_telemetry.tracing import Span

_USAGE = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,9})')

_UNSAID_BYTES = 8 << 20
"""How long a body may be that comes in pieces and does not say."""

_MANY_LOSSES: Final = 3
"""Backends that break under a request one after another, from which on it may be the cause."""

_log = logging.getLogger(__name__)

_BROKEN = frozenset((Ending.UNREACHABLE, Ending.LOST, Ending.MALFORMED, Ending.TRUNCATED))


class Journey:
    """What is remembered of a request while it is under way.

    Attributes:
        model: as the client named it; empty when it did not.
        ask: its prompt; `None` where it has none.
        span: of the request; `None` without tracing.
        backend: where it is, or was last.
        prompt: tokens of its prompt.
        cost: tokens that it is expected to take.
        streamed: whether its answer comes token by token.
        ticket: its place in the queue; `None` where it needs none.
        lost: the backend whose stream another one is to go on with; empty where none is.
        losses: backends that broke while they had it.
    """

    __slots__ = ("ask", "backend", "cost", "losses", "lost", "model", "prompt", "span", "streamed", "ticket")

    def __init__(self, request: RelayRequest) -> None:
        document = request.json()
        self.model = request.model or ""
        self.backend = self.lost = ""
        self.losses = 0
        self.ask: Ask | None = read_ask(request)
        self.span: Span | None = begin_request(request)
        self.ticket: Ticket | None = None
        if self.ask is not None:
            limit = output_limit(document)
            self.prompt = self.ask.prompt_tokens
            self.cost = self.prompt + (USUAL_OUTPUT if limit is None else limit)
            self.streamed = document.get("stream") is True
            return
        self.cost, self.prompt, self.streamed = 0, 0, False
        if not request.held:  # too long to be read
            length = _UNSAID_BYTES if request.length is None else request.length
            self.cost = length // TEXT_TOKEN_BYTES


class PoolTarget:
    """A backend of the pool, and its place there for one attempt at one request.

    It is the `Lease` that it hands out, too; see `rhizome_relay.picker`.
    """

    __deletable__ = ["_cut", "_heard_at"]  # noqa: RUF012 - the compiler takes no other form
    __slots__ = (
        "_backend", "_cut", "_heard_at", "_journey", "_lease", "_placement", "_retry", "_router", "_span",
        "headers", "kind", "name", "origin",
    )  # fmt: skip

    def __init__(self, router: Router, backend: Backend, journey: Journey, *, retry: bool = False) -> None:
        server: HttpServer = backend.server  # type: ignore[assignment]
        self.name = backend.name
        self.kind = server.kind
        self.origin = server.origin
        self.headers = server.headers
        self._router = router
        self._backend = backend
        self._journey = journey
        self._retry = retry

    def body(self, request: RelayRequest) -> bytes:
        """The body, with the model's name there."""
        model = self._journey.model
        own = self._backend.own_name(model) if model else None
        if own is None or own == model:
            return request.body
        try:
            return orjson.dumps({**request.json(), "model": own})
        except TypeError:  # the reader goes deeper than the writer
            raise bad_request("The body is nested too deeply for this model's name to be an alias.") from None

    def lease(self, cut: Callable[[], None], heard_at: Callable[[], float]) -> PoolTarget:
        """Count the request there."""
        router, backend, journey = self._router, self._backend, self._journey
        if self._retry:
            router.counts.retries += 1
        journey.backend = backend.name
        self._span = None
        if journey.span is not None:
            self._span = begin_attempt(journey.span, backend, router.policy.name)
            parent = self._span.trace_parent.to_header().encode()
            self.headers = (*self.headers, (b"traceparent", parent))
        ask = journey.ask
        self._placement = router.policy.place(backend, ask)
        self._lease = backend.lease(0 if ask is None else journey.prompt, streamed=journey.streamed)
        self._cut, self._heard_at = cut, heard_at
        backend.cuts.add(cut)
        backend.heard.add(heard_at)
        return self

    def first_byte(self) -> None:
        """The backend works; who else might have had the request does not matter any more."""
        journey = self._journey
        journey.ask = None
        self._lease.answered()
        if journey.lost:
            self._router.resumed(journey.lost)
            if journey.span is not None:
                journey.span.add_event(semconv.EVENT_RESUME, {semconv.PICK_BACKEND: journey.lost})
            journey.lost = ""
        if self._span is not None:
            self._span.add_event(semconv.EVENT_FIRST_BYTE)

    def release(self, outcome: Outcome) -> None:
        """Learn from how it went: what broke is checked at once; cancels, 4xx and 429 are no failures."""
        backend, ending = self._backend, outcome.ending
        backend.cuts.discard(self._cut)
        backend.heard.discard(self._heard_at)
        del self._cut, self._heard_at  # the exchange's, which holds this: a circle would outlive the request
        self._placement.end()
        if self._span is not None:
            end_attempt(self._span, outcome)
        if ending is Ending.COMPLETE and outcome.status < 500:
            self._lease.release()
            return
        broken = ending in _BROKEN
        self._journey.losses += broken and ending is not Ending.UNREACHABLE
        self._lease.release(failed=broken)
        if broken:
            backend.suspect(f"a request failed: {ending.value}")
        elif ending is Ending.REFUSED and outcome.status in (429, 503):
            backend.full(outcome.retry_after_s or None)
        elif ending is Ending.TIMED_OUT or outcome.status >= 500:
            backend.outlier.failed()


class PoolPicker:
    """Chooses among the pool's HTTP backends; see `rhizome_relay.picker.Picker`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def continuation(self, request: RelayRequest) -> TextContinuation | None:
        """What lets a stream go on elsewhere."""
        if not can_resume(request):
            return None
        return TextContinuation(request, lambda kinds: self._resume(request, kinds))

    def pick(self, request: RelayRequest) -> Iterator[PoolTarget] | Awaitable[Iterator[PoolTarget]]:
        """Backends, the best first; which is the next best is asked when it is needed."""
        self._router.http.open += 1
        request.state = journey = Journey(request)
        queue = self._router.queue(journey.model, http=True) if journey.cost else None
        if queue is not None:
            priority = priority_of(request)
            journey.ticket = queue.at_once(priority=priority, tokens=journey.cost)
            if journey.ticket is None:
                try:
                    journey.ticket = queue.offer(tenant_of(request), priority, journey.cost)
                except NotAdmitted as refusal:
                    raise _refused(refusal) from None
                return self._admitted(journey, journey.ticket)
        return self._targets(journey)

    async def _admitted(self, journey: Journey, ticket: Ticket) -> Iterator[PoolTarget]:
        try:
            await ticket.wait()
        except NotAdmitted as refusal:
            raise _refused(refusal) from None
        if journey.span is not None:
            journey.span.add_event(semconv.EVENT_ADMIT, {semconv.QUEUE_S: ticket.waited_s})
        return self._targets(journey)

    def ended(self, request: RelayRequest, result: Result) -> None:
        """Count it."""
        journey: Journey = request.state
        ticket, waited_s = journey.ticket, 0.0
        if ticket is not None:
            # To look for usage in a whole answer takes time, and who went in at once paid nothing to correct.
            free = ticket.charge is None and not journey.streamed
            ticket.release(None if free else _used_tokens(journey, result))
            waited_s = ticket.waited_s
        if journey.span is not None:
            end_request(journey.span, result)
        error = "" if result.whole and result.status < 500 else str(result.status or "cancelled")
        if result.status and not result.whole:
            error = "truncated"
        most = min(_MANY_LOSSES, max(1, self._router.max_resumes) + 1)
        if error and journey.losses >= most:
            self._router.counts.crash_loops += 1
        self._router.http.ended(
            journey.model,
            result.backend,
            str(result.status),
            operation=operation_of(request),
            error=error,
            duration_s=result.duration_s,
            first_byte_s=result.first_byte_s,
            queue_s=waited_s,
        )
        if _log.isEnabledFor(logging.DEBUG):
            path, place = request.path.decode("latin-1"), result.backend or "nobody"
            took = "%s ended: %d from %s in %.3f s"
            _log.debug(took, path, result.status, place, result.duration_s, extra=request.log_ids)

    def _targets(self, journey: Journey) -> Iterator[PoolTarget]:
        router, tried = self._router, set[str]()
        while (backend := router.pick(journey.ask, journey.model, tried, http=True)) is not None:
            losses = journey.losses
            yield PoolTarget(router, backend, journey, retry=bool(tried))
            if journey.losses > losses:
                tried.clear()  # who was lost or had no room before may do by now
            tried.add(backend.name)
        if not tried:
            raise self._nobody()

    def _resume(self, request: RelayRequest, kinds: frozenset[str] | None) -> PoolTarget | None:
        """A backend of such a kind that goes on with a request; the lost one if there is no other."""
        router, journey = self._router, cast(Journey, request.state)
        ask = read_ask(request)
        unfit = {
            backend.name
            for backend in router.registry.members
            if kinds is not None and backend.server.kind not in kinds
        }
        backend = router.pick(ask, journey.model, unfit | {journey.backend}, http=True)
        backend = backend or router.pick(ask, journey.model, unfit, http=True)
        if backend is None:
            return None
        journey.lost = journey.lost or journey.backend
        journey.ask = ask
        return PoolTarget(router, backend, journey)

    def _nobody(self) -> HttpError:
        known = sum(backend.spec.http for backend in self._router.registry.members)
        return unavailable(f"None of {known} backends is ready. Try again in a moment; /health says why.")


def _used_tokens(journey: Journey, result: Result) -> int | None:
    """What a request cost its tenant; `None` for what was expected, where nothing tells."""
    if not result.attempts:
        return 0
    found = _USAGE.findall(result.usage)
    told = int(found[-1]) if found else None
    if journey.streamed and (told is None or not result.whole):
        # What a stream says before it has ended may be what it had used as it began.
        told = max(result.pieces, told or 0)
    return None if told is None else journey.prompt + told


def _refused(refusal: NotAdmitted) -> HttpError:
    headers = (retry_after(refusal.retry_after_s),)
    return HttpError(refusal.status, refusal.code, f"{str(refusal).capitalize()}.", headers=headers)
