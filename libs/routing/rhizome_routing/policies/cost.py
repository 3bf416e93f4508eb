"""The backend where the request costs least.

    cost(b) = prompt tokens that b has not cached + active(b) / weight of b
    active(b) = 768 · open requests at b + 0.01 · tokens that they hold at b

Both terms are work in tokens of prefill: what b has to compute first, and what its other requests take from
it. An open request costs a share of every step whatever its length (0.35 ms of each of 300 steps, say, in
which 840 tokens are prefilled) and a little for each token that attention reads again. So requests follow
their prefix until its holder has one request more open for each 768 tokens of it. There are no thresholds, so
there is no load at which the choice flips.

How the numbers were found: on the Mooncake conversation trace (`benchmarks/routing.py`) 768 a request gives a
hit ratio of 0.175 with the busiest engine at 1.03 of the mean. Less than 100 a request is too sticky to
balance (0.12 and 1.5). 0.3 a token and nothing a request gives 0.155 and 1.06: long prompts then flee from
each other, and their prefixes with them.

What is cached comes from the prefix index, tokens and text apart; open requests from `active`. A backend
whose load is *unknown* counts as loaded as the busiest that is known, and comes after each one known to be
idle, whatever it caches.

Trade-off: to hash a prompt and to ask the index takes 0.1 ms at 32,000 tokens, which `least_loaded` saves
where prompts share nothing. An exact view of caches needs KV events; without them the index guesses from what
was sent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence

from rhizome_routing.candidate import AnyCandidate, Candidate, LoadReport
from rhizome_routing.policies.active import Active, OpenTokens
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Placement, Policy
from rhizome_routing.prefix.chain import TEXT_BLOCK
from rhizome_routing.prefix.index import PrefixIndex


class Cost(Policy):
    """Least cost first; ties in random order.

    Args:
        seed: of ties.
        request_cost: of each open request, in tokens of prefill.
        token_cost: of each token that open requests hold.
        clock: seconds, as load reports are stamped with.

    Attributes:
        text_index: prefixes in text.
    """

    name = "cost"

    def __init__(
        self,
        seed: int | None = None,
        *,
        request_cost: float = 768.0,
        token_cost: float = 0.01,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ids = PrefixIndex(clock=clock)
        self.text_index = PrefixIndex(TEXT_BLOCK, clock)
        self._random = random.Random(seed)  # noqa: S311
        self._clock = clock
        self._active = Active(request_cost, token_cost, self._on_report)
        self._instances: dict[str, str] = {}

    @property
    def index(self) -> PrefixIndex:
        """See `Policy`."""
        return self._ids

    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order `backends` by cost."""
        # Reports come first: they say in which blocks a backend counts.
        own, foreign = self._active.costs(backends, self._clock())
        worst = max([work for work in foreign if work is not None], default=0.0)
        prompt = ask.prompt_tokens if ask is not None else 0
        cached = self._cached(ask) if ask is not None else {}
        hit, draw = cached.get, self._random.random
        rows: list[tuple[float, bool, float, int]] = []
        idle_cost = 0.0
        for backend, mine, others in zip(backends, own, foreign, strict=True):
            unknown = others is None
            work = mine + (worst if others is None else others)
            cost = prompt - hit(backend.name, 0) + work / backend.weight
            if not work and not unknown and cost > idle_cost:
                idle_cost = cost
            rows.append((cost, unknown, draw(), len(rows)))
        if idle_cost:
            rows = [(max(row[0], idle_cost), *row[1:]) if row[1] else row for row in rows]
        rows.sort()
        return [backends[row[3]] for row in rows]

    def place(self, backend: Candidate, ask: Ask | None) -> Placement:
        """Count the prompt at `backend`, and expect its prefixes in the cache there."""
        if ask is None:
            return super().place(backend, ask)
        index = self.text_index if ask.is_text else self._ids
        index.dispatched(backend.name, ask.chain(index.view(backend.name).block_size).hashes)
        return OpenTokens(self._active, backend.name, ask.prompt_tokens)

    def retain(self, names: Collection[str]) -> None:
        """See `Policy`."""
        self._ids.retain(names)
        self.text_index.retain(names)
        self._active.retain(names)
        self._instances = {name: one for name, one in self._instances.items() if name in names}

    def _cached(self, ask: Ask) -> dict[str, int]:
        """Prompt tokens that each backend has cached; those without any are left out."""
        index = self.text_index if ask.is_text else self._ids
        sizes = index.block_sizes
        if len(sizes) == 1:
            chain = ask.chain(*sizes)
            return index.match(chain.probes, chain.tokens)
        cached: dict[str, int] = {}
        for block_size in sizes:
            chain = ask.chain(block_size)
            cached.update(index.match(chain.probes, chain.tokens))
        return cached

    def _on_report(self, backend: Candidate, report: LoadReport) -> None:
        """Learn a backend's pool, and that it was started anew with an empty cache."""
        load, name = report.load, backend.name
        if load.page_size and load.kv_pages_total:
            pool_tokens = load.kv_pages_total * load.page_size
            self._ids.set_pool(name, pool_tokens, load.page_size)
            self.text_index.set_pool(name, pool_tokens, TEXT_BLOCK)
        if load.instance_id and self._instances.get(name, load.instance_id) != load.instance_id:
            self.text_index.cleared(name)
            if not self._ids.view(name).exact:
                self._ids.cleared(name)
        self._instances[name] = load.instance_id
