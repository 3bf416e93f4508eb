"""The engine core without its process: add requests, take steps, get events.

    add ──> waiting ──> running ──> StartedEvent, TokensEvent..., FinishedEvent or FailedEvent
              ^  preemption  │
              └──────────────┘

Single-threaded: whoever owns it calls `add`, `cancel` and `step` in one loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Protocol

import grpc
import numpy as np

from rhizome_engine.batch import Batch, StepOutput, TokenLogprobs
from rhizome_engine.core.events import Event, FailedEvent, FinishedEvent, StartedEvent, TokensEvent
from rhizome_engine.kvcache.eviction import EVICTION_POLICIES
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.admission import InvalidRequestError, Limits, QueueFullError
from rhizome_engine.scheduler.batch_builder import Chunk, build_batch
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.load import Load, LoadMeter
from rhizome_engine.scheduler.request import FinishReason, Request
from rhizome_engine.scheduler.scheduler import Scheduler
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)
_MAX_FAILED_STEPS = 3


class RunnerConfig(Protocol):
    """What the core has to know of a model."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def max_position_embeddings(self) -> int:
        """The model's context window in tokens."""


class Runner(Protocol):
    """What computes a step; `ModelRunner`, or a test's."""

    @property
    def config(self) -> RunnerConfig:
        """The model's limits."""

    @property
    def num_pages(self) -> int:
        """Pages of the KV pool."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    def run(self, batch: Batch, /) -> StepOutput:
        """Compute a step."""

    def copy_page(self, source: int, target: int, num_slots: int, /) -> None:
        """Copy the first slots of a page to another."""


class EngineCore:
    """Scheduler, radix cache and model runner, driven step by step.

    Args:
        runner: computes steps and owns the KV tensors.
        config: limits.
        eos_token_ids: the checkpoint's end-of-sequence tokens.
        clock: monotonic seconds; deadlines are on it.
    """

    def __init__(
        self,
        runner: Runner,
        config: SchedulerConfig | None = None,
        eos_token_ids: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = config or SchedulerConfig()
        self._runner = runner
        self._clock = clock
        self._pool = PagePool(runner.num_pages, runner.page_size)
        self._cache = RadixCache(self._pool, EVICTION_POLICIES[config.eviction_policy]())
        self._scheduler = Scheduler(config, self._pool, self._cache, runner.copy_page)
        self._limits = Limits(
            vocab_size=runner.config.vocab_size,
            model_tokens=runner.config.max_position_embeddings,
            configured_tokens=config.max_context_tokens,
            num_pages=runner.num_pages,
            page_size=runner.page_size,
            # Some checkpoints name ids that their model does not have; those can neither come nor be banned.
            eos_token_ids=frozenset(id_ for id_ in eos_token_ids if 0 <= id_ < runner.config.vocab_size),
        )
        self._meter = LoadMeter(clock())
        self._open: dict[tuple[Hashable, str], Request] = {}
        self._pending: list[Event] = []
        self._failed_steps = 0

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and output together that one request can have."""
        return self._limits.max_context_tokens

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or tell anything."""
        return bool(self._open or self._pending)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never be served.
            QueueFullError: too many wait already.
        """
        if request.key in self._open:
            raise InvalidRequestError(f"request_id {request.request_id!r} is already open", "request_id")
        self._limits.admit(request, self._clock(), time.time_ns())
        try:
            self._scheduler.add(request)
        except QueueFullError:
            self._meter.totals.refused += 1
            raise
        self._meter.totals.received += 1
        self._open[request.key] = request

    def cancel(self, request_id: str, peer: Hashable = None, *, satisfied: bool = False) -> bool:
        """End a request in whatever state it is; its pages are free at once, the event comes with `step`.

        Args:
            request_id: as the peer called it.
            peer: who asks.
            satisfied: the caller has all that it wants, so the request was completed rather than aborted.

        Returns:
            whether it was open; a request that just finished is not, which is no error.
        """
        request = self._open.get((peer, request_id))
        if request is None:
            return False
        finished = self._finish(request, FinishReason.STOP if satisfied else FinishReason.CANCELLED)
        if satisfied:
            self._meter.completed(finished.timings)
        else:
            self._meter.totals.aborted += 1
        self._pending.append(finished)
        return True

    def drop_peer(self, peer: Hashable) -> int:
        """End all requests of a peer that is gone, without events; returns how many there were."""
        gone = [request for request in self._open.values() if request.peer == peer]
        for request in gone:
            self._meter.totals.aborted += 1
            self._finish(request, FinishReason.CANCELLED)
        self._pending = [event for event in self._pending if event.request.peer != peer]
        return len(gone)

    def step(self) -> list[Event]:
        """Compute one step and tell what happened since the last one.

        Raises:
            Exception: the model runner failed several times in a row; the process should be started anew.
        """
        now = self._clock()
        events, self._pending = self._pending, []
        for request in self._scheduler.expired(now):
            self._meter.totals.aborted += 1
            events.append(
                self._fail(request, grpc.StatusCode.DEADLINE_EXCEEDED, "the request's time is over", now)
            )
        chunks, started = self._scheduler.schedule(now)
        if not chunks:
            return events
        for request in started:
            self._meter.totals.cache_hit_tokens += request.cached_tokens
            self._meter.totals.cache_miss_tokens += len(request.prompt_ids) - request.cached_tokens
            events.append(StartedEvent(request, len(request.prompt_ids), request.cached_tokens))
        try:
            output = self._runner.run(build_batch(chunks, self._pool.page_size))
        except Exception:
            self._failed_steps += 1
            if self._failed_steps >= _MAX_FAILED_STEPS:
                raise
            _log.exception("the model runner failed; the %d requests of the step end", len(chunks))
            events.extend(self._fail_step(chunks))
            return events
        self._failed_steps = 0
        self._apply(chunks, output, events)
        return events

    def load(self) -> Load:
        """How busy the engine is now."""
        now = self._clock()
        running, waiting = self._scheduler.running, self._scheduler.waiting
        missing = [request.num_tokens - request.num_computed for request in (*running, *waiting)]
        self._meter.totals.preemptions = self._scheduler.num_preemptions
        return Load(
            running_requests=len(running),
            waiting_requests=len(waiting),
            waiting_tokens=sum(tokens for tokens in missing if tokens > 1),
            kv_pages_total=self._pool.num_pages,
            kv_pages_in_use=self._pool.num_pages - self._pool.num_free - self._cache.evictable_pages,
            kv_pages_cached=self._cache.evictable_pages,
            page_size=self._pool.page_size,
            totals=replace(self._meter.totals),
            generated_tokens_per_second=self._meter.tokens_per_second(now),
            mean_times=self._meter.mean_times(),
        )

    def flush_cache(self, namespace: str | None = None) -> int:
        """Drop every cached prefix that no request holds, of one namespace or of all; returns pages freed."""
        return self._cache.clear(namespace)

    def check_conservation(self) -> None:
        """Assert that every page is free, cached or in flight, and in one place only.

        Raises:
            AssertionError: a page was lost or has two owners.
        """
        cached = [node.pages for node in self._cache.nodes()]
        own = [request.pages.own_pages for request in self._scheduler.running if request.pages]
        pages = np.concatenate([self._pool.free_pages, *cached, *own])
        assert len(pages) == len(np.unique(pages)) == self._pool.num_pages, "pages were lost or doubled"
        in_tree = self._cache.evictable_pages + self._cache.protected_pages
        assert in_tree == sum(map(len, cached)), "the cache miscounts its pages"
        if not self._scheduler.running:
            assert self._cache.protected_pages == 0, "pages are locked, but nobody runs"

    def _apply(self, chunks: list[Chunk], output: StepOutput, events: list[Event]) -> None:
        """Let computed tokens catch up and hand out the new ones."""
        now = self._clock()
        sampled = [chunk.request for chunk in chunks if chunk.samples]
        for chunk in chunks:
            self._scheduler.advance(chunk)
        self._meter.generated(len(sampled), now)
        for request, token_id, logprobs in zip(sampled, output.token_ids, output.logprobs, strict=True):
            request.append(token_id, now)
            stops = token_id in request.stop_ids
            if not stops:
                events.append(TokensEvent(request, [token_id], _optional_list(logprobs)))
            if stops:
                finished = self._finish(request, FinishReason.STOP, token_id)
            elif len(request.output_ids) >= request.max_output:
                finished = self._finish(request, FinishReason.LENGTH)
            else:
                continue
            self._meter.completed(finished.timings)
            events.append(finished)

    def _finish(
        self, request: Request, reason: FinishReason, stop_token_id: int | None = None
    ) -> FinishedEvent:
        self._scheduler.finish(request)
        del self._open[request.key]
        return FinishedEvent(request, reason, stop_token_id, request.usage(), request.timings(self._clock()))

    def _fail(
        self, request: Request, code: grpc.StatusCode, message: str, now: float, *, keep: bool = True
    ) -> FailedEvent:
        self._scheduler.finish(request, keep=keep)
        del self._open[request.key]
        return FailedEvent(request, EngineError(code, message), request.usage(), request.timings(now))

    def _fail_step(self, chunks: list[Chunk]) -> list[Event]:
        """End the requests of a step that the model runner could not compute."""
        self._meter.totals.failed += len(chunks)
        text = "the engine failed while computing this request; try again, and see the engine's log"
        now = self._clock()
        return [
            self._fail(chunk.request, grpc.StatusCode.INTERNAL, text, now, keep=False) for chunk in chunks
        ]


def _optional_list(logprobs: TokenLogprobs | None) -> list[TokenLogprobs] | None:
    return None if logprobs is None else [logprobs]
