"""The radix cache against brute force: a dictionary of pages, one entry per page-long step of a prompt.

A page's last use is the time at which a path through it was matched, inserted or unlocked. Brute force
evicts, one page at a time, the unlocked page without successors whose last use is oldest, so the cache is
right exactly when both agree on which pages survive.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rhizome_engine.kvcache.eviction import LruPolicy
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache

NUM_PAGES = 24
namespaces = st.sampled_from(["", "tenant"])
prompts = st.lists(st.integers(0, 2), max_size=14)


@dataclass
class Entry:
    page: int
    last_use: int = 0
    locks: int = 0


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

    def use(self, keys):
        self.now += 1
        for key in keys:
            self.entries[key].last_use = self.now

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

    def evict(self):
        parents = {key[: -self.page_size] for key in self.entries}
        leaves = [key for key, entry in self.entries.items() if key not in parents and not entry.locks]
        if not leaves:
            return None
        return self.entries.pop(min(leaves, key=lambda key: self.entries[key].last_use)).page


class RadixCacheMachine(RuleBasedStateMachine):
    @initialize(page_size=st.integers(1, 3))
    def start(self, page_size):
        self.size = page_size
        self.pool = PagePool(NUM_PAGES, page_size)
        self.policy = LruPolicy()
        self.cache = RadixCache(self.pool, self.policy)
        self.brute = BruteForce(page_size)
        self.locked = []

    @rule(namespace=namespaces, tokens=prompts, lock=st.booleans())
    def match(self, namespace, tokens, lock):
        match = self.cache.match(namespace, np.array(tokens, np.int32))
        path = self.brute.path(namespace, tuple(tokens))
        assert match.pages.tolist() == [self.brute.entries[key].page for key in path]
        assert match.partial_tokens == self.brute.partial(namespace, tuple(tokens))
        if match.partial is not None:
            start = len(path) * self.size
            end = start + match.partial_tokens
            assert match.partial.parent is match.node
            assert match.partial.key[: match.partial_tokens].tolist() == tokens[start:end]
        self.brute.use(path)
        if lock:
            self.lock(match.node, path)

    @rule(namespace=namespaces, tokens=prompts, lock=st.booleans())
    def insert(self, namespace, tokens, lock):
        whole = len(tokens) // self.size
        if not 0 < whole <= self.pool.num_free:
            return
        tokens = tuple(tokens[: whole * self.size])
        pages = self.pool.allocate(whole)
        known = self.brute.path(namespace, tokens)
        inserted = self.cache.insert(namespace, np.array(tokens, np.int32), pages)
        assert inserted.duplicates.tolist() == pages[: len(known)].tolist()
        self.pool.free(inserted.duplicates)
        for index in range(len(known), whole):
            key = (namespace, *tokens[: (index + 1) * self.size])
            self.brute.entries[key] = Entry(int(pages[index]))
        path = self.brute.path(namespace, tokens)
        assert inserted.pages.tolist() == [self.brute.entries[key].page for key in path]
        self.brute.use(path)
        if lock:
            self.lock(inserted.node, path)

    def lock(self, node, path):
        self.cache.lock(node)
        self.locked.append((node, path))
        for key in path:
            self.brute.entries[key].locks += 1

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data):
        node, path = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        self.cache.unlock(node)
        self.brute.use(path)
        for key in path:
            self.brute.entries[key].locks -= 1

    @rule(count=st.integers(1, 6))
    def evict(self, count):
        before = set(self.pool.free_pages.tolist())
        freed = self.cache.evict(count)
        expected = [page for _ in range(count) if (page := self.brute.evict()) is not None]
        assert freed == len(expected)
        assert set(self.pool.free_pages.tolist()) - before == set(expected)

    @rule(namespace=st.one_of(st.none(), namespaces))
    def clear(self, namespace):
        doomed = [
            key
            for key, entry in self.brute.entries.items()
            if not entry.locks and namespace in (None, key[0])
        ]
        assert self.cache.clear(namespace) == len(doomed)
        for key in doomed:
            del self.brute.entries[key]

    @invariant()
    def pages_are_where_brute_force_has_them(self):
        nodes = list(self.cache.nodes())
        cached = [page for node in nodes for page in node.pages.tolist()]
        assert sorted(cached) == sorted(entry.page for entry in self.brute.entries.values())
        assert sorted(cached + self.pool.free_pages.tolist()) == list(range(NUM_PAGES))
        unlocked = [node for node in nodes if not node.lock_ref]
        assert self.cache.evictable_pages == sum(len(node.pages) for node in unlocked)
        assert self.cache.protected_pages == len(cached) - self.cache.evictable_pages
        assert len(self.policy) == len(unlocked)

    @invariant()
    def the_tree_is_well_formed(self):
        for node in self.cache.nodes():
            assert len(node.key) == len(node.pages) * self.size > 0
            for key, child in node.children.items():
                assert child.parent is node and child.first_page_key(self.size) == key
                assert child.lock_ref <= node.lock_ref

    @invariant()
    def the_next_victim_is_the_oldest_leaf(self):
        victim = self.policy.victim()
        if victim is None:
            assert all(node.lock_ref for node in self.cache.nodes())
            return
        assert not victim.children and not victim.lock_ref
        last_use = {entry.page: entry.last_use for entry in self.brute.entries.values()}
        leaves = [n for n in self.cache.nodes() if not n.children and not n.lock_ref]
        oldest = min(leaves, key=lambda node: last_use[int(node.pages[-1])])
        assert victim is oldest


RadixCacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRadixCache = RadixCacheMachine.TestCase
