"""The engine core without its process: add requests, take steps, get events.

    add ──> waiting ──> running ──> StartedEvent, TokensEvent..., FinishedEvent or FailedEvent
              ^  preemption  │
              └──────────────┘

With overlap a step is launched before the tokens of the one before are read, so that the device never waits
for the host:

    step(n)      schedule n, launch n  |  read n-1, tell n-1  |  masks of n, sample n
    the device   ... n-1 ...............|... n ..............................|... n, sampling ...

Single-threaded: whoever owns it calls `add`, `cancel` and `step` in one loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NoReturn

import grpc
from numpy.typing import ArrayLike

from rhizome_engine.core.backlog import Backlog
from rhizome_engine.core.cache_tiers import CacheTiers
from rhizome_engine.core.conservation import check_conservation
from rhizome_engine.core.constraints import Constraints
from rhizome_engine.core.current_load import current_load
from rhizome_engine.core.events import Event, FailedEvent, FinishedEvent, StartedEvent
from rhizome_engine.core.failed_steps import FailedSteps
from rhizome_engine.core.open_requests import OpenRequests
from rhizome_engine.core.pinning import pin_prefix
from rhizome_engine.core.runner_protocol import LaunchedStep, Runner
from rhizome_engine.core.step_results import StepResults
from rhizome_engine.core.step_watch import StepWatch
from rhizome_engine.kvcache.namespace_stats import NamespaceStats
from rhizome_engine.kvcache.pins import Pin
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.scheduler.admission import InvalidRequestError, Limits, QueueFullError
from rhizome_engine.scheduler.batch_builder import build_batch
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.load import Load, LoadMeter, Outcome
from rhizome_engine.scheduler.request import FinishReason, Request, RequestState
from rhizome_engine.scheduler.scheduler import Scheduler
from rhizome_engine.scheduler.slots import SlotTable
from rhizome_engine.scheduler.step_plan import StepPlan
from rhizome_grammar.compiler import GrammarCompiler

_log = logging.getLogger(__name__)
_DEADLINE_SLACK_S = 0.05
_SHARE_FOR_OTHERS = 8
"""Of the queue: one part in so many."""
_MOST_HELD_BACK = 16_384
"""Requests of calls with many, beside the queue."""


class EngineCore:
    """Scheduler, radix cache and model runner, driven step by step.

    Args:
        runner: computes steps and owns the KV tensors.
        config: limits and policies.
        eos_token_ids: the checkpoint's end-of-sequence tokens.
        clock: monotonic seconds; deadlines are on it.
        grammars: compiles grammars; None refuses requests that have one.
        num_host_pages: pages of the runner's host tier; 0 for none, or to leave it alone.

    Attributes:
        kv_events: what comes into the prefix cache and leaves it.
        cache_survey: what the prefix cache looks like now.
        steps: times them.
        token_gaps: time between tokens.
    """

    def __init__(
        self,
        runner: Runner,
        config: SchedulerConfig | None = None,
        eos_token_ids: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
        grammars: GrammarCompiler | None = None,
        num_host_pages: int = 0,
    ) -> None:
        self._config = config = config or SchedulerConfig()
        self._runner = runner
        self._clock = clock
        vocab_size = runner.config.vocab_size
        self._limits = Limits(
            vocab_size=vocab_size,
            model_tokens=runner.config.max_position_embeddings,
            configured_tokens=config.max_context_tokens,
            num_pages=runner.num_pages,
            page_size=runner.page_size,
            # Some checkpoints name ids that their model does not have; those can neither come nor be banned.
            eos_token_ids=frozenset(id_ for id_ in eos_token_ids if 0 <= id_ < vocab_size),
        )
        page_size = runner.page_size
        self._tiers = tiers = CacheTiers(runner.num_pages, num_host_pages, page_size, config, clock)
        self.kv_events, self.cache_survey = tiers.events, tiers.survey
        self._slots = SlotTable(config.num_slots, -(-self.max_context_tokens // page_size), page_size)
        self._sampling = SamplingRows(config.num_slots, vocab_size)
        self._scheduler = Scheduler(
            config,
            tiers.pool,
            tiers.cache,
            self._slots,
            self._sampling,
            self._drop_a_pin,
            tiers.copies,
            tiers.host,
        )
        self._constraints = Constraints(grammars, vocab_size)
        self._meter = LoadMeter(clock())
        self._backlog = Backlog()
        self._open = OpenRequests(self._scheduler, self._constraints, self._backlog, self._meter, clock)
        self._results = StepResults(self._open, self._scheduler, self._constraints, self._meter, clock)
        self.steps = StepWatch(self._scheduler, self._meter, clock, overlap=config.overlap)
        self.token_gaps = self._results.token_gaps
        self._pending: list[FinishedEvent | FailedEvent] = []
        self._under_way: tuple[StepPlan, LaunchedStep] | None = None
        self._failed = FailedSteps(self._open, lambda: tiers.distrust_host(self._scheduler.running))

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and output together that one request can have."""
        return self._limits.max_context_tokens

    @property
    def num_steps(self) -> int:
        """Steps computed since the start."""
        return self._meter.totals.steps

    @property
    def has_work(self) -> bool:
        """Whether a request is open, a step is under way, or something is left to tell."""
        return bool(len(self._open) or self._under_way or self._pending)

    @property
    def is_runnable(self) -> bool:
        """Whether `step` would do or tell anything now; False while all requests wait for their grammars."""
        return len(self._open) != self._constraints.num_preparing or bool(self._under_way or self._pending)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never be served.
            QueueFullError: too many wait already, beyond those that the next step can start.
        """
        self._admit(request)
        self._check_queue(request.peer)
        if request.grammar is None:
            self._scheduler.add(request)
        else:
            request.state = RequestState.PREPARING
            self._constraints.prepare(request)
        self._open.add(request)

    def add_together(self, requests: Sequence[Request]) -> None:
        """Queue the requests of one call: as one, as far as the queue's bound is concerned, and all or none.

        Args:
            requests: at least one; without grammars and with one deadline.

        Raises:
            InvalidRequestError: one can never be served; the message names it as `inputs[index]`.
            QueueFullError: as for `add`, or too many are held back already.
        """
        if len(self._backlog) >= _MOST_HELD_BACK:
            self._refuse(len(self._backlog))
        for index, request in enumerate(requests):
            try:
                self._admit(request)
            except InvalidRequestError as error:
                raise error.of_input(index) from None
        self._check_queue()
        for request in requests:
            request.state = RequestState.PREPARING
            self._open.add(request)
        self._backlog.add(requests)
        self._release_backlog()

    def cancel(self, request_id: str, peer: Hashable = None, *, satisfied: bool = False) -> bool:
        """End a request in whatever state it is; its pages are free at once, the event comes with `step`.

        Args:
            request_id: as the peer called it.
            peer: who asks.
            satisfied: the caller has all that it wants, so the request was completed rather than aborted.

        Returns:
            whether it was open; a request that just finished is not, which is no error.
        """
        request = self._open.get(peer, request_id)
        if request is None:
            return False
        if satisfied:
            self._pending.append(self._open.finish(request, FinishReason.STOP))
        else:
            # Whoever waits with the same deadline gives up when it passes, a moment before it passes here.
            late = request.deadline - self._clock() < _DEADLINE_SLACK_S
            outcome: Outcome = "expired" if late else "aborted"
            self._pending.append(self._open.finish(request, FinishReason.CANCELLED, outcome=outcome))
        return True

    def drop_peer(self, peer: Hashable) -> list[FinishedEvent | FailedEvent]:
        """End all requests of a peer that is gone.

        Returns:
            the last event of each, which `step` will not tell.
        """
        ends = [event for event in self._pending if event.request.peer == peer]
        self._pending = [event for event in self._pending if event.request.peer != peer]
        ends += [
            self._open.finish(request, FinishReason.CANCELLED, outcome="aborted")
            for request in self._open.of_peer(peer)
        ]
        return ends

    def tick(self) -> None:
        """Do what is due by the clock; `step` does it too, an idle engine needs it now and then."""
        self._tiers.pins.expire(self._clock())

    def use_idle_time(self) -> bool:
        """Do a piece of what makes later steps faster, unless there is work; whether more is left."""
        return not self.has_work and self._runner.use_idle_time()

    def step(self) -> list[Event]:
        """Launch the next step and tell what happened since the last one.

        Raises:
            Exception: the model runner failed several times in a row; the process should be started anew.
        """
        now = self._clock()
        self.tick()
        events: list[Event] = [*self._pending]
        self._pending = []
        self._end_expired(now, events)
        self._start_prepared(events)
        self._release_backlog()
        launched = self._launch(now, events)
        if self._under_way is not None:
            self._read(*self._under_way, events)
        self._under_way = self._sample(launched, events)
        if self._under_way is not None and not self._config.overlap:
            self._read(*self._under_way, events)
            self._under_way = None
        return events

    def load(self) -> Load:
        """How busy the engine is now."""
        return current_load(
            self._scheduler,
            self._backlog,
            self._num_queued,
            self._tiers,
            self._meter,
            self._runner.counts,
            self._clock(),
        )

    def flush_cache(self, namespace: str | None = None) -> int:
        """Drop what no request holds, of one namespace or of all, in all tiers; returns pages freed."""
        return self._tiers.flush(namespace)

    def pin_prefix(self, namespace: str, token_ids: ArrayLike, ttl_s: float | None = None) -> Pin:
        """Keep what the cache holds of a prefix from eviction.

        Args:
            namespace: whose prefix it is.
            token_ids: [n] compute them first, with a request of `max_tokens` 0.
            ttl_s: seconds until it may be evicted again; None for ever.

        Raises:
            EngineError: the pins would exceed their budget, or nothing of the prefix is cached.
        """
        return pin_prefix(self._tiers.pins, namespace, token_ids, ttl_s)

    def unpin_prefix(self, pin_id: str) -> bool:
        """Let a pinned prefix go; False where there is no such pin."""
        return self._tiers.pins.unpin(pin_id)

    def list_pins(self) -> list[Pin]:
        """All pins."""
        return self._tiers.pins.list()

    def cache_stats(self) -> dict[str, NamespaceStats]:
        """What the prefix cache did for each namespace."""
        return self._tiers.cache.stats()

    def host_stats(self) -> dict[str, NamespaceStats] | None:
        """The same of the host tier, which is asked for what the cache does not have; None without one."""
        return None if self._tiers.host is None else self._tiers.host.cache.stats()

    def check_conservation(self) -> None:
        """Assert that every page is free, cached or in flight, and in one place only.

        Raises:
            AssertionError: a page was lost or has two owners.
        """
        check_conservation(self._tiers, self._slots, self._scheduler.running)

    @property
    def _num_queued(self) -> int:
        return len(self._scheduler.waiting) + self._constraints.num_preparing

    def _admit(self, request: Request) -> None:
        if request.key in self._open:
            raise InvalidRequestError(f"request_id {request.request_id!r} is already open", "request_id")
        self._limits.admit(request, self._clock(), time.time_ns())

    def _check_queue(self, peer: Hashable = None) -> None:
        """Refuse what finds the queue full; who has half of what is open leaves the end of it to others."""
        waiting, size = self._num_queued, self._config.max_queue_size
        room = size + self._slots.num_free
        if waiting >= room:
            self._refuse(waiting)
        if peer is not None and waiting >= room - size // _SHARE_FOR_OTHERS and self._open.has_half(peer):
            self._refuse(waiting)

    def _refuse(self, waiting: int) -> NoReturn:
        self._meter.totals.refused += 1
        raise QueueFullError(waiting, self._meter.retry_after_s(waiting, self._config.num_slots))

    def _release_backlog(self) -> None:
        """Let calls with many requests have what others leave of the queue, up to a half of it."""
        for request in self._backlog.release(
            self._config.max_queue_size // 2 + self._slots.num_free - self._num_queued
        ):
            request.state = RequestState.WAITING
            self._scheduler.add(request)

    def _drop_a_pin(self) -> bool:
        """Let the pin go that would end first; a request that needs the whole pool comes before pins."""
        dropped = self._tiers.pins.unpin_first()
        if dropped is not None:
            _log.warning("unpinned %d tokens: a request needs the whole pool", dropped.num_tokens)
        return dropped is not None

    def _launch(self, now: float, events: list[Event]) -> tuple[StepPlan, LaunchedStep] | None:
        plan = self._scheduler.schedule(now)
        if plan is None:
            return None
        for request in plan.started:
            missed = request.num_prompt - request.cached_tokens
            self._meter.started(request.cached_tokens, missed)
            self._tiers.cache.record_lookup(request.namespace, request.cached_tokens, missed)
            events.append(StartedEvent(request, request.num_prompt, request.cached_tokens))
        try:
            batch = build_batch(plan, self._slots, self._sampling, self._runner.page_size)
            return plan, self._runner.launch(batch)
        except Exception as error:
            events += self._failed.fail(plan, error)
            return None

    def _sample(
        self, launched: tuple[StepPlan, LaunchedStep] | None, events: list[Event]
    ) -> tuple[StepPlan, LaunchedStep] | None:
        """Say what a step may choose, now that all tokens before are known; None where there is no step."""
        if launched is None:
            return None
        plan, step = launched
        try:
            step.sample(self._constraints.masks(plan))
        except Exception as error:
            events += self._failed.fail(plan, error)
            return None
        return launched

    def _read(self, plan: StepPlan, step: LaunchedStep, events: list[Event]) -> None:
        """Wait for a step's tokens and hand them out."""
        try:
            output = step.result()
        except Exception as error:
            events += self._failed.fail(plan, error)
            return
        self._failed.went_well()
        self.steps.read(plan)
        self._results.apply(plan, output, events)

    def _end_expired(self, now: float, events: list[Event]) -> None:
        preparing = [request for request in self._constraints.preparing if request.deadline <= now]
        for request in (*self._scheduler.expired(now), *preparing, *self._backlog.expired(now)):
            code, text = grpc.StatusCode.DEADLINE_EXCEEDED, "the request's time is over"
            events.append(self._open.fail(request, code, text, outcome="expired", keep=True))

    def _start_prepared(self, events: list[Event]) -> None:
        """Queue requests whose grammar is ready."""
        if not self._constraints.num_preparing:
            return
        for request, error in self._constraints.take_ready():
            if error is not None:
                code = grpc.StatusCode.INVALID_ARGUMENT
                events.append(self._open.fail(request, code, str(error), "grammar", outcome="invalid"))
            else:
                request.state = RequestState.WAITING
                self._scheduler.add(request)
