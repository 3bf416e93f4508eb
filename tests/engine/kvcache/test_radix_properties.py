"""The radix cache against brute force, under every eviction policy.

Brute force is a dictionary of pages, one entry per page-long step of a prompt. It evicts, one page at a time,
the unlocked page without successors that comes first by the policy's own measure; so the cache is right
exactly when both agree on which pages survive. Everything else that the cache tells (peek, statistics,
version, what listeners hear, pins) is checked against the same dictionary after every operation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from rhizome_engine.kvcache.eviction import FifoPolicy, LazyHeapPolicy, LfuPolicy, LruPolicy
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.pins import NothingCachedError, PinBudgetError, PinnedPrefixes
from rhizome_engine.kvcache.radix_cache import RadixCache

NUM_PAGES = 24
PIN_BUDGET = 6
ttls = st.sampled_from([None, 1.0, 5.0])
SYMBOLS_PER_PAGE = {1: 1, 3: 3, 4: 2, 16: 2}
page_sizes = st.sampled_from(sorted(SYMBOLS_PER_PAGE))
namespaces = st.sampled_from(["", "", "tenant"])
prompts = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.integers(0, 7))


class MostRecentlyUsed(LazyHeapPolicy):
    """Keys fall with every use, which a heap that only looks again on pop would get wrong."""

    def key(self, node):
        return -node.last_use


class LargestFirst(LazyHeapPolicy):
    """Keys change when a leaf is cut or split."""

    def key(self, node):
        return -len(node.pages), node.last_use


@dataclass
class Entry:
    page: int
    created: int
    last_use: int = 0
    uses: int = 1
    locks: int = 0


# How brute force chooses; None where that depends on how pages are divided among nodes.
POLICIES: dict[str, tuple[Callable, Callable | None]] = {
    "lru": (LruPolicy, lambda entry: entry.last_use),
    "lfu": (LfuPolicy, lambda entry: (entry.uses, entry.last_use)),
    "lfu_saturated": (lambda: LfuPolicy(2), lambda entry: (min(entry.uses, 2), entry.last_use)),
    "fifo": (FifoPolicy, lambda entry: entry.created),
    "most_recently_used": (MostRecentlyUsed, lambda entry: -entry.last_use),
    "largest_first": (LargestFirst, None),
}


@dataclass
class BruteForce:
    """Entries by (namespace, all tokens up to and including the page)."""

    page_size: int
    entries: dict[tuple, Entry] = field(default_factory=dict)
    now: int = 0

    def path(self, namespace, tokens):
        found = []
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            key = (namespace, *tokens[:end])
            if key not in self.entries:
                break
            found.append(key)
        return found

    def use(self, keys, lookups=0):
        self.now += 1
        for key in keys:
            self.entries[key].last_use = self.now
            self.entries[key].uses += lookups

    def partial(self, namespace, tokens):
        depth = len(self.path(namespace, tokens)) * self.page_size
        rest = tokens[depth : depth + self.page_size]
        best = 0
        for key in self.entries:
            own = key[1:]
            if key[0] == namespace and len(own) == depth + self.page_size and own[:depth] == tokens[:depth]:
                shared = 0
                while shared < len(rest) and own[depth + shared] == rest[shared]:
                    shared += 1
                best = max(best, shared)
        return best

    def cached_tokens(self, namespace, tokens):
        whole = len(self.path(namespace, tokens)) * self.page_size
        return whole + self.partial(namespace, tokens)

    def victim(self, measure):
        parents = {key[: -self.page_size] for key in self.entries}
        leaves = [key for key, entry in self.entries.items() if key not in parents and not entry.locks]
        return min(leaves, key=lambda key: measure(self.entries[key]), default=None)


class Mirror(dict):
    """A listener that knows the cache only from what it was told."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def steps(self, node, pages):
        size, tokens = self.pool.page_size, node.prefix_ids().tolist()
        assert len(tokens) % size == 0
        ends = range(len(tokens) - (len(pages) - 1) * size, len(tokens) + 1, size)
        return zip([(node.namespace, *tokens[:end]) for end in ends], pages.tolist(), strict=True)

    def stored(self, node):
        for key, page in self.steps(node, node.pages):
            assert key not in self
            self[key] = page

    def removed(self, node, pages):
        assert not set(pages.tolist()) & set(self.pool.free_pages.tolist())
        for key, page in self.steps(node, pages):
            assert self.pop(key) == page


class RadixCacheMachine(stateful.RuleBasedStateMachine):
    @initialize(page_size=page_sizes, cached=st.lists(prompts, min_size=4, max_size=8))
    def start(self, page_size, cached):
        make_policy, self.measure = POLICIES[self.policy_name]
        self.size = page_size
        self.pool = PagePool(NUM_PAGES, page_size)
        self.policy = make_policy()
        self.mirror = Mirror(self.pool)
        self.cache = RadixCache(self.pool, self.policy, self.listeners())
        self.time, self.known_version = 0.0, -1
        self.pinned = PinnedPrefixes(self.cache, page_size, PIN_BUDGET, lambda: self.time)
        self.brute = BruteForce(page_size)
        self.locked, self.pins, self.probes = [], {}, {}
        self.evicted, self.flushed = Counter(), Counter()
        for prompt in cached:  # most runs would spend most of their steps on an empty tree
            self.insert_one("", self.tokens(prompt), lock=False)

    def listeners(self):
        return [self.mirror]

    def tokens(self, prompt):
        """Draw few symbols per page, so that prompts share pages and parts of pages at every page size."""
        symbols, trim = prompt
        repeat = self.size // SYMBOLS_PER_PAGE[self.size]
        tokens = [symbol for symbol in symbols for _ in range(repeat)]
        return tuple(tokens[: max(0, len(tokens) - trim % repeat)])

    def draw_cached(self, data):
        """A prompt that is cached whole, and whose namespace."""
        namespace, *tokens = data.draw(st.sampled_from(sorted(self.brute.entries)))
        return namespace, tuple(tokens)

    def apply(self, path, locks):
        for key in path:
            self.brute.entries[key].locks += locks

    @rule(namespace=namespaces, prompt=prompts, lock=st.booleans())
    def match(self, namespace, prompt, lock):
        self.look_up(namespace, self.tokens(prompt), lock)

    @precondition(lambda self: self.brute.entries)
    @rule(data=st.data(), lock=st.booleans())
    def match_what_is_cached(self, data, lock):
        self.look_up(*self.draw_cached(data), lock)

    def look_up(self, namespace, tokens, lock):
        match = self.cache.match(namespace, np.array(tokens, np.int32))
        path = self.brute.path(namespace, tokens)
        assert match.pages.tolist() == [self.brute.entries[key].page for key in path]
        assert match.partial_tokens == self.brute.partial(namespace, tokens)
        if match.partial is not None:
            start = len(path) * self.size
            end = start + match.partial_tokens
            assert match.partial.parent is match.node
            assert match.partial.key[: match.partial_tokens].tolist() == list(tokens[start:end])
        self.brute.use(path, lookups=1)
        if lock:
            self.lock(match.node, path)

    @rule(namespace=namespaces, prompt=prompts, lock=st.booleans())
    def insert(self, namespace, prompt, lock):
        self.insert_one(namespace, self.tokens(prompt), lock)

    @precondition(lambda self: self.brute.entries)
    @rule(data=st.data(), symbol=st.integers(0, 1))
    def extend_what_is_cached(self, data, symbol):
        namespace, tokens = self.draw_cached(data)
        self.insert_one(namespace, (*tokens, *[symbol] * self.size), lock=False)

    @precondition(lambda self: self.brute.entries)
    @rule(data=st.data(), lock=st.booleans())
    def insert_what_is_cached(self, data, lock):
        self.insert_one(*self.draw_cached(data), lock)

    def insert_one(self, namespace, tokens, lock):
        whole = len(tokens) // self.size
        if not 0 < whole <= self.pool.num_free:
            return
        tokens = tokens[: whole * self.size]
        pages = self.pool.allocate(whole)
        known = self.brute.path(namespace, tokens)
        inserted = self.cache.insert(namespace, np.array(tokens, np.int32), pages)
        assert inserted.duplicates.tolist() == pages[: len(known)].tolist()
        self.pool.free(inserted.duplicates)
        for index in range(len(known), whole):
            key = (namespace, *tokens[: (index + 1) * self.size])
            self.brute.entries[key] = Entry(int(pages[index]), created=self.brute.now)
        path = self.brute.path(namespace, tokens)
        assert inserted.pages.tolist() == [self.brute.entries[key].page for key in path]
        self.brute.use(path)
        if lock:
            self.lock(inserted.node, path)

    def lock(self, node, path):
        self.cache.lock(node)
        self.locked.append((node, path))
        self.apply(path, 1)

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data):
        node, path = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        self.cache.unlock(node)
        self.brute.use(path)
        self.apply(path, -1)

    @rule(count=st.integers(1, 4))
    def evict(self, count):
        if self.measure is None:
            for _ in range(count):
                self.evict_one()
            return
        before = set(self.pool.free_pages.tolist())
        freed = self.cache.evict(count)
        expected = set()
        while len(expected) < count and (key := self.brute.victim(self.measure)) is not None:
            expected.add(self.brute.entries.pop(key).page)
            self.evicted[key[0]] += 1
        assert freed == len(expected)
        assert set(self.pool.free_pages.tolist()) - before == expected

    def evict_one(self):
        victim = self.policy.victim()
        assert self.cache.evict(1) == (victim is not None)
        for key in set(self.brute.entries) - set(self.mirror):
            assert not self.brute.entries.pop(key).locks
            self.evicted[key[0]] += 1

    @precondition(lambda self: len(self.brute.entries) > NUM_PAGES // 2)
    @rule(namespace=st.one_of(st.none(), namespaces))
    def clear(self, namespace):
        entries = self.brute.entries
        doomed = [key for key in entries if not entries[key].locks and namespace in (None, key[0])]
        assert self.cache.clear(namespace) == len(doomed)
        for key in doomed:
            del entries[key]
            self.flushed[key[0]] += 1

    @rule(namespace=namespaces, prompt=prompts, ttl_s=ttls)
    def pin(self, namespace, prompt, ttl_s):
        self.pin_one(namespace, self.tokens(prompt), ttl_s)

    @precondition(lambda self: self.brute.entries)
    @rule(data=st.data(), ttl_s=ttls)
    def pin_what_is_cached(self, data, ttl_s):
        self.pin_one(*self.draw_cached(data), ttl_s)

    def pin_one(self, namespace, tokens, ttl_s):
        path = self.brute.path(namespace, tokens)
        taken = {key for pinned, _ in self.pins.values() for key in pinned}
        try:
            pin = self.pinned.pin(namespace, np.array(tokens, np.int32), ttl_s)
        except NothingCachedError:
            assert not path
        except PinBudgetError as error:
            assert len(taken | set(path)) > PIN_BUDGET
            assert (error.new_pages, error.pinned_pages) == (len(set(path) - taken), len(taken))
        else:
            assert path and len(taken | set(path)) <= PIN_BUDGET
            assert (pin.num_pages, pin.num_tokens) == (len(path), len(path) * self.size)
            _, until = self.pins.get(pin.id, (path, 0.0))
            if pin.id not in self.pins:
                self.apply(path, 1)
            until = None if None in (ttl_s, until) else max(until, self.time + ttl_s)
            assert pin.expires_at == until
            self.pins[pin.id] = (path, until)
        self.brute.use(path, lookups=1)

    def unpin_brute(self, pin_id):
        path, _ = self.pins.pop(pin_id)
        self.brute.use(path)
        self.apply(path, -1)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        pin_id = data.draw(st.sampled_from(sorted(self.pins)))
        assert self.pinned.unpin(pin_id) and not self.pinned.unpin(pin_id)
        self.unpin_brute(pin_id)

    @rule(seconds=st.sampled_from([1.0, 3.0]))
    def wait(self, seconds):
        self.time += seconds
        ended = [
            pin_id for pin_id, (_, until) in self.pins.items() if until is not None and until <= self.time
        ]
        assert [pin.id for pin in self.pinned.expire(self.time)] == ended
        for pin_id in ended:
            self.unpin_brute(pin_id)

    @invariant()
    def pages_are_where_brute_force_has_them(self):
        nodes = list(self.cache.nodes())
        cached = [page for node in nodes for page in node.pages.tolist()]
        assert self.mirror == {key: entry.page for key, entry in self.brute.entries.items()}
        assert sorted(cached) == sorted(entry.page for entry in self.brute.entries.values())
        assert sorted(cached + self.pool.free_pages.tolist()) == list(range(NUM_PAGES))
        unlocked = [node for node in nodes if not node.lock_ref]
        assert self.cache.evictable_pages == sum(len(node.pages) for node in unlocked)
        assert self.cache.protected_pages == len(cached) - self.cache.evictable_pages
        if isinstance(self.policy, LruPolicy | LfuPolicy):
            assert len(self.policy) == len(unlocked)

    @invariant()
    def the_tree_is_well_formed(self):
        for node in self.cache.nodes():
            assert len(node.key) == len(node.pages) * self.size > 0
            assert node.key_bytes.startswith(node.key.tobytes())
            for key, child in node.children.items():
                assert child.parent is node and child.first_page_key(self.size) == key
                assert child.lock_ref <= node.lock_ref
                assert child.uses <= node.uses
                assert child.last_use <= node.last_use
                assert child.created >= node.created

    @invariant()
    def the_next_victim_is_the_first_leaf_by_the_measure(self):
        victim = self.policy.victim()
        leaves = [n for n in self.cache.nodes() if not n.children and not n.lock_ref]
        if victim is None:
            assert not leaves
            return
        assert victim in leaves
        if self.measure is None:
            assert victim is min(leaves, key=self.policy.key)
        else:
            entries = {entry.page: entry for entry in self.brute.entries.values()}
            assert victim is min(leaves, key=lambda node: self.measure(entries[int(node.pages[-1])]))

    @rule(namespace=namespaces, prompt=prompts)
    def peek(self, namespace, prompt):
        tokens = self.tokens(prompt)
        self.probes[namespace, tokens] = self.brute.cached_tokens(namespace, tokens)

    @invariant()
    def peek_is_right_and_changes_only_with_the_version(self):
        for (namespace, tokens), before in self.probes.items():
            cached = self.brute.cached_tokens(namespace, tokens)
            assert self.cache.peek(namespace, np.array(tokens, np.int32)) == cached
            assert cached == before or self.cache.version != self.known_version
            self.probes[namespace, tokens] = cached
        self.known_version = self.cache.version

    @invariant()
    def pins_and_statistics_agree_with_brute_force(self):
        paths = {key for path, _ in self.pins.values() for key in path}
        assert self.pinned.pinned_pages == len(paths) <= PIN_BUDGET
        assert [pin.id for pin in self.pinned.list()] == list(self.pins)
        assert all(self.brute.entries[key].locks for key in paths)
        for namespace, stats in self.cache.stats().items():
            assert stats.cached_pages == sum(key[0] == namespace for key in self.brute.entries)
            assert stats.evicted_pages == self.evicted[namespace]
            assert stats.flushed_pages == self.flushed[namespace]
            gone = stats.evicted_pages + stats.flushed_pages
            assert stats.stored_pages == gone + stats.cached_pages


@pytest.mark.parametrize("name", POLICIES)
def test_agrees_with_brute_force_after_every_operation(name):
    machine = type("Machine", (RadixCacheMachine,), {"policy_name": name})
    wanted = settings(max_examples=100, stateful_step_count=40, deadline=None)
    stateful.run_state_machine_as_test(machine, settings=wanted)
