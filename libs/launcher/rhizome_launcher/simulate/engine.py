"""Continuous batching without a model: who computes what in which step, and how long it takes.

Time is an argument. Nothing here waits or knows an event loop, so a test can run hours in a moment.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rhizome_launcher.simulate.block_pool import BlockPool
from rhizome_launcher.simulate.physics import Physics
from rhizome_launcher.simulate.request import SimulatedRequest

_RATE_WINDOW_S: Final = 3.0
_LEAST_NOISE_FACTOR: Final = 0.05
_MOST_TENANTS: Final = 1000


class TooLargeError(ValueError):
    """A request that the KV pool could never hold."""


@dataclass(slots=True)
class Totals:
    """Counted since the start.

    Attributes:
        received: requests.
        completed: requests with all their tokens.
        aborted: requests whose caller went away.
        preemptions: times that a running request gave its blocks back.
        prompt_tokens: tokens in the prompts of requests that left the queue.
        cached_tokens: those of them found in the prefix cache.
        generated_tokens: tokens given out.
        steps: steps computed.
        batched: requests that got a token, summed over all steps.
        prefill_s: time of steps spent on prompts.
        decode_s: time of steps spent on outputs.
    """

    received: int = 0
    completed: int = 0
    aborted: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    batched: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Engine:
    """One simulated engine.

    A step gives a token to every request whose prompt is computed, and what room is left goes to prompts in
    the order of arrival. Where requests name tenants, as those to our own engines do, the prompts of each get
    an equal part, and who was served least leaves the queue first. A prompt's last chunk gives its first
    token. Requests that need more blocks than there are push back the one that came last, which computes
    everything again later.

    Args:
        physics: how fast.
        vocabulary: tokens, `TOKEN_BYTES` each.
        watched: keep `pool.changes`.

    Attributes:
        due: when something happens next, in simulated seconds; `None` while there is nothing to do.
        totals: what happened.
        latency: factor on the duration of steps.
        touched: requests that heard something since this list was emptied.
    """

    def __init__(self, physics: Physics, vocabulary: Sequence[bytes], *, watched: bool = False) -> None:
        self.physics = physics
        self.vocabulary = vocabulary
        self.pool = BlockPool(physics.kv_blocks, watched=watched)
        self.totals = Totals()
        self.latency = 1.0
        self.due: float | None = None
        self.touched: list[SimulatedRequest] = []
        self._noise = random.Random(physics.noise_seed)  # noqa: S311 - nothing secret
        self._waiting: deque[SimulatedRequest] = deque()
        self._prefilling: list[SimulatedRequest] = []
        self._decoding: list[SimulatedRequest] = []
        self._chunks: list[tuple[SimulatedRequest, int]] = []
        self._in_step = False
        self._now = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._served: dict[str, int] = {}

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def batch(self) -> tuple[SimulatedRequest, ...]:
        """The requests in the batch."""
        return (*self._decoding, *self._prefilling)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that are not computed."""
        return sum(request.tokens - request.computed for request in (*self._waiting, *self._prefilling))

    @property
    def kv_usage(self) -> float:
        """Part of the KV pool that requests hold."""
        return self.pool.in_use / self.pool.blocks

    @property
    def hit_rate(self) -> float:
        """Part of all prompt tokens that was cached."""
        return self.totals.cached_tokens / max(1, self.totals.prompt_tokens)

    def tokens_per_s(self, now: float) -> float:
        """Tokens generated per second of late."""
        while self._recent and self._recent[0][0] < now - _RATE_WINDOW_S:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        since, before = self._recent[0]
        return (self.totals.generated_tokens - before) / max(now - since, 1e-3)

    def submit(self, request: SimulatedRequest, now: float) -> None:
        """Queue a request.

        Raises:
            TooLargeError: it could never run.
        """
        most_tokens = request.prompt_tokens + max(request.generated + 1, request.max_tokens)
        if self.physics.blocks(most_tokens) > self.physics.kv_blocks:
            raise TooLargeError(
                "prompt and output together need more KV blocks than this server has; "
                "send a shorter prompt or ask for fewer tokens"
            )
        request.arrived_s = now
        self.totals.received += 1
        self._open_tenant(request.tenant)
        self._waiting.append(request)
        if self.due is None:
            self.due = now

    def _open_tenant(self, tenant: str) -> None:
        """A tenant that has nothing here starts where the least served one is; alone, where others will."""
        served = self._served
        if len(served) == 1 and tenant in served:  # nobody to be fair to, in a queue that may be long
            return
        here = {request.tenant for request in (*self._waiting, *self._prefilling, *self._decoding)}
        if not here or len(served) > _MOST_TENANTS:
            for gone in served.keys() - here:
                del served[gone]
        if tenant not in here:
            least = min((served.get(one, 0) for one in here), default=0)
            served[tenant] = max(served.get(tenant, 0), least)

    def cancel(self, request: SimulatedRequest) -> None:
        """Forget a request; one that is over is ignored."""
        if request.over:
            return
        self.totals.aborted += 1
        self._drop(request)
        for members in (self._waiting, self._prefilling, self._decoding):
            if request in members:
                members.remove(request)

    def advance(self, now: float) -> None:
        """Let everything happen that is due."""
        while self.due is not None and self.due <= now:
            moment = self.due
            if self._in_step:
                self._end_step(moment)
            self._begin_step(moment)

    def _begin_step(self, now: float) -> None:
        self._make_room()
        self._admit(now)
        left = self.physics.step_tokens - len(self._decoding)
        self._chunks = []
        of_tenants: dict[str, list[SimulatedRequest]] = {}
        for request in self._prefilling:
            of_tenants.setdefault(request.tenant, []).append(request)
        # Whose prompts need least comes first, so that what it leaves is divided among the others.
        needs = {name: sum(one.tokens - one.computed for one in of) for name, of in of_tenants.items()}
        for place, name in enumerate(sorted(needs, key=needs.__getitem__)):
            share = left // (len(needs) - place)
            for request in of_tenants[name]:
                chunk = min(share, request.tokens - request.computed)
                if chunk <= 0:
                    break
                self._chunks.append((request, chunk))
                self._served[name] = self._served.get(name, 0) + chunk
                share -= chunk
                left -= chunk
        prefill_tokens = sum(chunk for _, chunk in self._chunks)
        decodes = len(self._decoding)
        self._in_step = bool(prefill_tokens or decodes)
        if not self._in_step:
            self.due = None
            return
        duration_s = self.physics.step_s(prefill_tokens, decodes) * self.latency
        if self.physics.noise:
            duration_s *= max(_LEAST_NOISE_FACTOR, self._noise.gauss(1.0, self.physics.noise))
        self.due = now + duration_s
        totals = self.totals
        totals.steps += 1
        totals.batched += decodes + len(self._chunks)
        prefill_s = min(duration_s, prefill_tokens / self.physics.prefill_tokens_per_s)
        totals.prefill_s += prefill_s
        totals.decode_s += duration_s - prefill_s

    def _end_step(self, now: float) -> None:
        # Nobody joined `_decoding` since the step began; who left was cancelled.
        self._now = now
        before = self.totals.generated_tokens
        emit = self._emit
        ended = False
        for request in self._decoding:
            request.computed += 1
            ended |= emit(request)
        if ended:
            self._decoding = [request for request in self._decoding if not request.over]
        for request, chunk in self._chunks:
            if request.over:
                continue
            request.computed += chunk
            if request.computed == request.tokens:
                self._prefilling.remove(request)
                self._share(request)
                if request.first_token_s is None:
                    request.first_token_s = now
                if request.generated >= request.max_tokens:
                    self._finish(request)
                elif not emit(request):
                    self._decoding.append(request)
        self._recent.append((now, before))
        if self._recent[0][0] < now - _RATE_WINDOW_S:
            self._recent.popleft()

    def _emit(self, request: SimulatedRequest) -> bool:
        index = request.state % len(self.vocabulary)
        token = self.vocabulary[index]
        request.state = zlib.crc32(token, request.state)
        request.content += token
        request.generated += 1
        self.totals.generated_tokens += 1
        request.sink.token(index)
        self.touched.append(request)
        if request.generated < request.max_tokens:
            return False
        self._finish(request)
        return True

    def _finish(self, request: SimulatedRequest) -> None:
        self._share(request)
        self._drop(request)
        request.ended_s = self._now
        self.totals.completed += 1
        request.sink.finished(request)
        self.touched.append(request)

    def _admit(self, now: float) -> None:
        physics, pool = self.physics, self.pool
        while self._waiting and self.running < physics.max_running:
            request = self._next()
            hashes = request.hashes(physics.block_size) if physics.prefix_cache else []
            hits = pool.match(hashes)
            # The last token is always computed, because its logits are needed.
            cached = min(hits * physics.block_size, request.tokens - 1)
            if not pool.reserve(hashes[:hits], physics.blocks(request.tokens + 1) - hits):
                return
            self._waiting.remove(request)
            request.shared = hashes[:hits]
            request.private = physics.blocks(request.tokens + 1) - hits
            request.computed = cached
            self._prefilling.append(request)
            if request.started_s is None:
                request.started_s = now
                request.cached = cached
                self.totals.prompt_tokens += request.prompt_tokens
                self.totals.cached_tokens += cached
                request.sink.started(request)
                self.touched.append(request)

    def _next(self) -> SimulatedRequest:
        """The first in the queue of the tenant that was served least."""
        served = self._served
        if len(served) == 1:  # nobody to be fair to, in a queue that may be long
            return self._waiting[0]
        return min(self._waiting, key=lambda request: served.get(request.tenant, 0))

    def _make_room(self) -> None:
        """Every request that decodes gets a block for its next token, or makes way."""
        size = self.physics.block_size
        for request in tuple(self._decoding):
            # Who was pushed back for an earlier one has nothing computed, and needs no room.
            while request.computed and request.tokens + 1 > (len(request.shared) + request.private) * size:
                if self.pool.reserve((), 1):
                    request.private += 1
                    continue
                last = self._prefilling[-1] if self._prefilling else self._decoding[-1]
                self._push_back(last)
                if last is request:
                    break

    def _push_back(self, request: SimulatedRequest) -> None:
        self.totals.preemptions += 1
        self._share(request)
        self._release(request)
        request.computed = 0
        (self._prefilling if request in self._prefilling else self._decoding).remove(request)
        self._waiting.appendleft(request)

    def _share(self, request: SimulatedRequest) -> None:
        """Put the full blocks that are computed into the cache."""
        held, size = len(request.shared), self.physics.block_size
        if not self.physics.prefix_cache or request.computed // size <= held:
            return
        full = request.hashes(size)[held : request.computed // size]
        tokens = request.token_ids()[held * size : (held + len(full)) * size].tolist() if full else []
        self.pool.share(request.shared[-1] if held else None, full, tokens)
        request.private -= len(full)
        request.shared += full

    def _release(self, request: SimulatedRequest) -> None:
        self.pool.release(request.shared, request.private)
        request.shared, request.private = [], 0

    def _drop(self, request: SimulatedRequest) -> None:
        request.over = True
        self._release(request)
