"""Chooses what the next step computes.

One rule: each request has known tokens (prompt and output) and computed tokens (their keys and values are
in pages), and a step lets computed tokens catch up with known ones under a budget of tokens. There are no
phases: a long prompt is chunked because the budget ends, a decoding request merely has one token to catch up,
a cached prefix counts as computed, and a preempted request has fallen back to what the cache still holds.

A step is scheduled before the tokens of the one before are read: a token that is being chosen counts as known
already (see `SlotTable`), and what was read is told with `confirm`.

Order: requests that decode get their token first, so a long prompt never stalls running answers; several
prompts share the rest (`prefill_budget`). Where more run than a batch has rows they take turns, and a large
tenant sits steps out that would slow a small one down (`isolation`). Pages are given out optimistically; when
they run out, a running request gives its own back and waits again (`preemption`). Rank is arrival, or
priority before it: of those that run, the first in rank is the last to go and fits the pool alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import Int64
from rhizome_engine.kvcache.host_tier import HostTier
from rhizome_engine.kvcache.page_copies import PageCopies
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.kvcache.sequence_pages import SequencePages
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.fair_share import OUTPUT_TOKEN_COST, FairShare
from rhizome_engine.scheduler.isolation import TenantIsolation, Turn
from rhizome_engine.scheduler.preemption import choose_victim, plan_displacement, weakest
from rhizome_engine.scheduler.prefill_budget import share_budget
from rhizome_engine.scheduler.prompts_under_way import PromptsUnderWay
from rhizome_engine.scheduler.request import Request, RequestState
from rhizome_engine.scheduler.room import RoomNeeded
from rhizome_engine.scheduler.slots import SlotTable
from rhizome_engine.scheduler.step_plan import Chunk, StepPlan
from rhizome_engine.scheduler.unshared_prompts import UnsharedPrompts
from rhizome_engine.scheduler.waiting_queue import WaitingQueue, insert_by_rank, rank_of

_MAX_LOOKS = 64
"""So many waiting requests are looked at in one step: those that wait for a prefix are passed over."""


class Scheduler:
    """Queues, budget and preemption.

    Args:
        config: limits and policies.
        pool: pages to give out.
        cache: where prefixes are found and computed pages are left.
        slots: where running requests are described.
        sampling: how running requests choose tokens.
        unpin: lets a pinned prefix go, False where there is none; for requests that need the whole pool.
        copies: of pages, for the next step; shared with the host tier.
        host: where prefixes are that the cache has no more, None for nowhere.

    Attributes:
        running: requests that hold pages and a slot, in order of rank.
        waiting: requests that do not.
        shares: what tenants were served.
        isolation: how often large tenants join; whoever runs steps tells it how long they take.
        num_preemptions: since start.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: PagePool,
        cache: RadixCache,
        slots: SlotTable,
        sampling: SamplingRows,
        unpin: Callable[[], bool] = lambda: False,
        copies: PageCopies | None = None,
        host: HostTier | None = None,
    ) -> None:
        self.running: list[Request] = []
        self.shares = FairShare()
        self.isolation = TenantIsolation(config)
        self.waiting = WaitingQueue(config, cache, self.shares, host)
        self.num_preemptions = 0
        self._config = config
        self._pool = pool
        self._cache = cache
        self._slots = slots
        self._sampling = sampling
        self._unpin = unpin
        self._by_slot: list[Request | None] = [None] * config.num_slots
        self._running_slots: Int64 = np.empty(0, np.int64)
        self._tenants = np.zeros(config.num_slots, np.int64)
        self._unshared = UnsharedPrompts(pool.page_size)
        self._prepared: list[Request] = []
        self._copies = copies or PageCopies()
        self._host = host
        self._no_room: tuple[int, int, int] | None = None
        self._arrivals = 0
        self._next_deadline = math.inf

    def add(self, request: Request) -> None:
        """Queue an admitted request."""
        self._arrivals += 1
        request.arrival_order = self._arrivals
        request.tenant_number = self.shares.open(request.tenant)
        self._next_deadline = min(self._next_deadline, request.deadline)
        self.waiting.add(request)

    def expired(self, now: float) -> list[Request]:
        """Open requests whose deadline has passed; the caller ends them."""
        if now < self._next_deadline:
            return []
        requests = [*self.running, *self.waiting]
        # Never later than the truth: a request that ended meanwhile costs one look too many.
        self._next_deadline = min((r.deadline for r in requests if r.deadline > now), default=math.inf)
        return [request for request in requests if request.deadline <= now]

    def schedule(self, now: float) -> StepPlan | None:
        """Choose the next step's work and reserve its pages; None when there is nothing to do."""
        self._start_waiting(now)
        slots, prompts, turn = self._choose_rows()
        occupants = self._slots.occupant[slots]
        self._reserve_decodes(slots)
        chunks = self._cut_chunks(prompts, self._config.max_step_tokens - len(slots), turn)
        # Whoever had to make room is out, and so are later occupants of its slot.
        slots = slots[(self._slots.occupant[slots] == occupants) & self._slots.have_room(slots)]
        return self._commit(slots, chunks, turn, now) if len(slots) or chunks else None

    def confirm(self, plan: StepPlan, token_ids: Int64) -> NDArray[np.bool_]:
        """Note that a step was computed; a prompt that is complete now is shared with later requests.

        Args:
            plan: the step.
            token_ids: [len(plan.sampled)] what was chosen.

        Returns:
            [len(plan.sampled)], whose slot is still the one for which the token was chosen.
        """
        for pages in plan.loading:
            pages.are_loading = False
        for chunk in plan.chunks:
            request = chunk.request
            if request.slot >= 0 and self._slots.occupant[request.slot] == chunk.occupant:
                request.num_computed = chunk.end
                self._unshared.share(request, is_awaited=len(self.waiting) > 0)
        # A slot may have changed hands meanwhile, and a grammar may have forced the tokens from there on.
        slots = plan.sampled_slots
        still_there: NDArray[np.bool_] = self._slots.occupant[slots] == plan.occupants
        next_one = still_there & (self._slots.confirmed[slots] == plan.sampled_positions)
        self._slots.confirm(slots[next_one], plan.sampled_positions[next_one], token_ids[next_one])
        return still_there

    def extend(self, request: Request) -> None:
        """Take over tokens that were appended to a running request without having been chosen."""
        self._slots.extend(request.slot, request.num_tokens, int(request.token_ids[-1]))
        if request.params.needs_history:
            self._prepared.append(request)

    def finish(self, request: Request, *, keep: bool = True) -> None:
        """End a request in whatever state it is and take back its pages.

        Args:
            request: an open one.
            keep: leave what it computed in the tree; False where that cannot be trusted.
        """
        if request.state is RequestState.RUNNING:
            self._stop(request, keep=keep)
        elif request.state is RequestState.WAITING:
            self.waiting.remove(request)
        if request.state is not RequestState.PREPARING:
            self.shares.close(request.tenant)
        request.state = RequestState.FINISHED

    def _choose_rows(self) -> tuple[Int64, list[Request], Turn | None]:
        """Who of the running takes part: slots that decode, prompts, and what larger tenants do."""
        slots = self._running_slots
        known, computed = self._slots.known[slots], self._slots.computed[slots]
        active = (known > computed) & (known < self._slots.limit[slots])
        slots, missing = slots[active], (known - computed)[active]
        decodes = (missing == 1) & (computed[active] >= self._slots.prompt_end[slots])
        turn = self.isolation.choose(self._tenants[slots], missing, decodes)
        if turn is not None and not turn.together:
            slots, decodes = slots[turn.small], decodes[turn.small]
        in_turn = self._slots.in_turn(slots, self._config.max_rows)
        slots, decodes = slots[in_turn], decodes[in_turn]
        prompts = [request for slot in slots[~decodes].tolist() if (request := self._by_slot[slot])]
        return slots[decodes], prompts, turn

    def _reserve_decodes(self, slots: Int64) -> None:
        """Give a page to each row that decodes into a new one, in order of rank."""
        for slot in slots[~self._slots.have_room(slots)].tolist():
            request = self._by_slot[slot]
            if request is not None and request.state is RequestState.RUNNING:
                self._make_room(request, int(self._slots.known[slot]))

    def _start_waiting(self, now: float) -> None:
        """Start waiting requests; whether they have a row in this very step is decided after."""
        slots = self._running_slots
        several = np.bincount(self._tenants[slots]).max(initial=0) > 1 and self.shares.num_active > 1
        may_displace = self._config.policy == "priority" or (self._config.fairness and several)
        if not len(self.waiting) or not (self._slots.num_free or may_displace):
            return
        missing = (self._slots.prompt_end - self._slots.computed)[slots]
        unfinished = zip(slots[missing > 0].tolist(), missing[missing > 0].tolist(), strict=True)
        under_way = [(request, left) for slot, left in unfinished if (request := self._by_slot[slot])]
        prompts = PromptsUnderWay(self._config, under_way, len(slots) - len(under_way))
        displaced: list[Request] = []  # not started again: a step under way may still hold their rows
        for looks, request in enumerate(self.waiting.candidates(now)):
            if looks >= _MAX_LOOKS or len(prompts) >= self._config.max_rows:
                return
            if request in displaced or prompts.is_full_for(request):
                continue
            if self._unshared.will_give(request, self.waiting.cached_tokens(request)):
                continue
            if not self._start(request):
                for victim in self._make_way(request):
                    self._preempt(victim)
                    displaced.append(victim)
                    prompts.discard(victim)
                if not self._start(request):
                    return  # nobody overtakes: a large request would never find room
            prompts.add(request)

    def _make_way(self, request: Request) -> list[Request]:
        """Running requests that have to give way to a waiting one; none where that would not be enough."""
        if not self.running:
            self._unpin()
            return []
        if choose_victim(request, self.running, self._config) is None:
            return []
        room = RoomNeeded(request, self._pool, self._cache)

        def has_room(victims: Sequence[Request]) -> bool:
            left = np.setdiff1d(self._running_slots, [victim.slot for victim in victims])
            some_slot = self._slots.num_free + len(victims) > 0
            return some_slot and room.fits(victims, len(left) + self._slots.promised_pages(left))

        return plan_displacement(request, self.running, self._config, has_room) or []

    def _start(self, request: Request) -> bool:
        """Take a slot and cached pages; False while there is no room for a request's known tokens."""
        # Looking it up again would count as a use of its prefix, though nothing can have changed.
        headroom = len(self.running) + self._slots.promised_pages(self._running_slots)
        available = self._pool.num_free + self._cache.evictable_pages - headroom
        room = (request.arrival_order, self._cache.version, available)
        if not self._slots.num_free or room == self._no_room:
            return False
        slot = self._slots.take()
        table = self._slots.page_table[slot]
        pages = SequencePages(self._pool, self._cache, request.namespace, table, self._host)
        copies: list[tuple[int, int, int]] = []
        computed = pages.attach(
            request.token_ids,
            lambda *copy: copies.append(copy),
            headroom=headroom,
            reuse=request.reads_cache,
        )
        if computed is None:
            self._no_room = room
            self._slots.give_back(slot)
            return False
        for copy in copies:
            self._copies.add_one(*copy)
        if copies or pages.are_loading or request.params.needs_history:
            self._prepared.append(request)
        self.waiting.remove(request)
        request.slot, request.pages, request.num_computed = slot, pages, computed
        request.state = RequestState.RUNNING
        self._slots.fill(slot, request, pages.num_pages)
        self._by_slot[slot] = request
        self._tenants[slot] = request.tenant_number
        # A grammar that is complete may end before `min_tokens`: there is nothing else to say.
        min_tokens = 0 if request.grammar is not None else request.min_tokens
        self._sampling.set(
            slot, request.params, request.seed, request.num_prompt, request.stop_ids, min_tokens
        )
        insert_by_rank(self.running, request, self._config)
        self._update_running_slots()
        self._unshared.add(request)
        return True

    def _cut_chunks(self, prompts: list[Request], budget: int, turn: Turn | None) -> list[Chunk]:
        """Divide the budget among prompts and reserve their pages."""
        prompts = [request for request in prompts if request.state is RequestState.RUNNING]
        others = frozenset() if turn is None else turn.others
        first = [request for request in prompts if request.tenant_number not in others]
        shares = self._share(first, budget)
        if turn is not None:
            rest = [request for request in prompts if request.tenant_number in others]
            left = min(budget - sum(share for _, share in shares), turn.others_tokens)
            shares += self._share(rest, left)
        chunks: list[Chunk] = []
        for request, share in sorted(shares, key=lambda pair: rank_of(pair[0], self._config)):
            if share and request.state is RequestState.RUNNING:
                start = int(self._slots.computed[request.slot])
                if self._make_room(request, start + share):
                    reached_end = start + share == self._slots.known[request.slot]
                    samples = bool(reached_end and self._slots.samples[request.slot])
                    occupant = int(self._slots.occupant[request.slot])
                    chunks.append(Chunk(request, start, share, samples, occupant))
        return [chunk for chunk in chunks if chunk.request.state is RequestState.RUNNING]

    def _share(self, prompts: list[Request], budget: int) -> list[tuple[Request, int]]:
        """How many tokens of each prompt are computed."""
        if not prompts or budget <= 0:
            return []
        slots = np.array([request.slot for request in prompts], np.int64)
        missing = (self._slots.known[slots] - self._slots.computed[slots]).tolist()
        owners = [request.tenant if self._config.fairness else "" for request in prompts]
        shares = share_budget(missing, owners, budget, self._config.max_chunk_tokens)
        return list(zip(prompts, shares, strict=True))

    def _commit(self, decoding: Int64, chunks: list[Chunk], turn: Turn | None, now: float) -> StepPlan:
        """Count the step's tokens as computed, and the ones that it chooses as known."""
        slots = self._slots
        decode = [request for slot in decoding.tolist() if (request := self._by_slot[slot])]
        started = [chunk.request for chunk in chunks if chunk.request.first_scheduled is None]
        for request in started:
            request.first_scheduled = now
            request.cached_tokens = min(request.num_computed, request.num_prompt)
        positions = slots.computed[decoding]
        chunk_slots = np.array([chunk.request.slot for chunk in chunks], np.int64)
        sampling = [chunk for chunk in chunks if chunk.samples]
        sampled_slots = np.concatenate(
            [decoding, np.array([chunk.request.slot for chunk in sampling], np.int64)]
        )
        slots.computed[decoding] += 1
        slots.computed[chunk_slots] = [chunk.end for chunk in chunks]
        slots.take_turns(np.concatenate([decoding, chunk_slots]))
        sampled_positions = slots.known[sampled_slots]
        slots.known[sampled_slots] += 1
        self.shares.charge(self._tenants[sampled_slots], OUTPUT_TOKEN_COST)
        self.shares.charge(
            self._tenants[chunk_slots], np.array([chunk.num_tokens for chunk in chunks], np.int64)
        )
        prepared = [request for request in self._prepared if request.state is RequestState.RUNNING]
        self._prepared = []
        return StepPlan(
            decode=decode,
            decode_slots=decoding,
            decode_positions=positions,
            chunks=chunks,
            sampled=decode + [chunk.request for chunk in sampling],
            sampled_slots=sampled_slots,
            sampled_positions=sampled_positions,
            occupants=slots.occupant[sampled_slots],
            started=started,
            page_copies=self._copies.take(),
            loading=[request.pages for request in prepared if request.pages and request.pages.are_loading],
            new_histories=[request for request in prepared if request.params.needs_history],
            prepared=prepared,
            turn=turn,
            launched=now,
        )

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Reserve pages, preempting from the last rank on; False where the request itself had to go."""
        assert request.pages is not None
        while not request.pages.reserve(num_tokens):
            if len(self.running) == 1 and self._unpin():
                continue
            victim = weakest(self.running, self._config)
            self._preempt(victim)
            if victim is request:
                return False
        self._slots.capacity[request.slot] = request.pages.num_pages * self._pool.page_size
        return True

    def _preempt(self, request: Request) -> None:
        """Let a running request wait again; what it computed stays cached while there is room."""
        self._stop(request, keep=True)
        request.state = RequestState.WAITING
        if request.first_scheduled is not None:  # else it lost a place in which it never ran
            request.preemptions += 1
            self.num_preemptions += 1
        self.waiting.add(request)

    def _stop(self, request: Request, *, keep: bool) -> None:
        assert request.pages is not None
        self.running.remove(request)
        self._unshared.discard(request)
        keep = keep and request.fills_cache
        request.pages.release(request.computed_ids if keep else request.computed_ids[:0])
        self._by_slot[request.slot] = None
        self._slots.capacity[request.slot] = 0
        self._slots.give_back(request.slot)
        self._sampling.clear(request.slot)
        request.pages = None
        request.slot = -1
        request.num_computed = 0
        self._update_running_slots()

    def _update_running_slots(self) -> None:
        self._running_slots = np.array([request.slot for request in self.running], np.int64)
