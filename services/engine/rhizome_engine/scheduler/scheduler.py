"""Chooses what the next step computes.

One rule: each request has known tokens (prompt and output) and computed tokens (their keys and values are
in pages), and a step lets computed tokens catch up with known ones under a budget of tokens. There are no
phases: a long prompt is chunked because the budget ends, a decoding request merely has one token to catch up,
a cached prefix counts as computed, and a preempted request has fallen back to what the cache still holds.

Order: running requests by arrival, then waiting ones by arrival. One budget token is kept for every request
that decodes, so a long prompt never stalls running answers. Pages are given out optimistically; when they run
out, the youngest running request gives its pages back to the tree and returns to the front of the queue. The
oldest running request is never preempted for another one and fits the pool alone, so it always progresses.
"""

from __future__ import annotations

import math
from collections import deque

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.kvcache.sequence_pages import CopyPage, SequencePages
from rhizome_engine.scheduler.admission import QueueFullError
from rhizome_engine.scheduler.batch_builder import Chunk
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request, RequestState

_RETRY_AFTER_S = 1.0


class Scheduler:
    """Queues, budget and preemption.

    Args:
        config: limits.
        pool: pages to give out.
        cache: where prefixes are found and computed pages are left.
        copy_page: copies slots of a page, for prefixes that end inside one.

    Attributes:
        running: requests that hold pages, oldest arrival first.
        waiting: requests that do not, oldest arrival first.
        num_preemptions: since start.
    """

    def __init__(
        self, config: SchedulerConfig, pool: PagePool, cache: RadixCache, copy_page: CopyPage
    ) -> None:
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.num_preemptions = 0
        self._config = config
        self._pool = pool
        self._cache = cache
        self._copy_page = copy_page
        # A row of the budget for everyone who runs: nobody starves however small the budget is.
        self._max_rows = min(config.max_batch_size, config.max_step_tokens)
        self._max_chunk = config.max_chunk_tokens or config.max_step_tokens
        self._next_deadline = math.inf

    def add(self, request: Request) -> None:
        """Queue an admitted request.

        Raises:
            QueueFullError: too many wait already, beyond those that the next step can start.
        """
        free_rows = self._max_rows - len(self.running)
        if len(self.waiting) >= self._config.max_queue_size + max(free_rows, 0):
            raise QueueFullError(len(self.waiting), _RETRY_AFTER_S)
        self.waiting.append(request)
        self._next_deadline = min(self._next_deadline, request.deadline)

    def expired(self, now: float) -> list[Request]:
        """Open requests whose deadline has passed; the caller ends them."""
        if now < self._next_deadline:
            return []
        requests = [*self.running, *self.waiting]
        # Never later than the truth: a request that ended meanwhile costs one look too many.
        self._next_deadline = min((r.deadline for r in requests if r.deadline > now), default=math.inf)
        return [request for request in requests if request.deadline <= now]

    def schedule(self, now: float) -> tuple[list[Chunk], list[Request]]:
        """Choose the next step's work and reserve its pages.

        Returns:
            the chunks, empty when nothing is left to do; and the requests that start now for the first time.
        """
        decoding = sum(request.num_tokens - request.num_computed == 1 for request in self.running)
        budget = self._config.max_step_tokens - decoding
        preemptions = self.num_preemptions
        chunks: list[Chunk] = []
        index = 0
        while index < len(self.running):  # preemption shortens the list from its end
            request = self.running[index]
            missing = request.num_tokens - request.num_computed
            count = 1 if missing == 1 else min(missing, budget, self._max_chunk)
            if count and self._make_room(request, request.num_computed + count):
                chunks.append(Chunk(request, count))
                budget -= count if missing > 1 else 0
            index += 1
        started = []
        while (
            self.waiting
            and budget > 0
            and len(self.running) < self._max_rows
            and self.num_preemptions == preemptions  # what was just taken is not given to somebody else
            and self._start(self.waiting[0])
        ):
            request = self.waiting.popleft()
            self.running.append(request)
            if request.first_scheduled is None:
                request.first_scheduled = now
                request.cached_tokens = request.num_computed
                started.append(request)
            count = min(request.num_tokens - request.num_computed, budget, self._max_chunk)
            if self._make_room(request, request.num_computed + count):
                chunks.append(Chunk(request, count))
                budget -= count
        return chunks, started

    def advance(self, chunk: Chunk) -> None:
        """Note that a chunk was computed; a prompt that is complete now is shared with later requests."""
        request = chunk.request
        before = request.num_computed
        request.num_computed += chunk.num_tokens
        if before < len(request.prompt_ids) <= request.num_computed:
            assert request.pages is not None
            request.pages.share(request.computed_ids)

    def finish(self, request: Request, *, keep: bool = True) -> None:
        """End a request in whatever state it is and take back its pages.

        Args:
            request: an open one.
            keep: leave what it computed in the tree; False where that cannot be trusted.
        """
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
            self._release(request, keep)
        elif request.state is RequestState.WAITING:
            self.waiting.remove(request)
        request.state = RequestState.FINISHED

    def _start(self, request: Request) -> bool:
        """Take over cached pages; False while the pool has no room for a request's known tokens."""
        pages = SequencePages(self._pool, self._cache, request.namespace, request.max_total_tokens)
        computed = pages.attach(request.token_ids, self._copy_page, headroom=len(self.running))
        if computed is None:
            return False
        request.pages, request.num_computed = pages, computed
        request.state = RequestState.RUNNING
        return True

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Reserve pages, preempting from the youngest on; False where the request itself had to go."""
        assert request.pages is not None
        while not request.pages.reserve(num_tokens):
            youngest = self.running.pop()
            self._release(youngest, keep=True)
            youngest.state = RequestState.WAITING
            self.waiting.appendleft(youngest)
            self.num_preemptions += 1
            if youngest is request:
                return False
        return True

    def _release(self, request: Request, keep: bool) -> None:
        assert request.pages is not None
        request.pages.release(request.computed_ids if keep else request.computed_ids[:0])
        request.pages = None
        request.num_computed = 0
