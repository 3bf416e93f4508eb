"""The prefix index against a model that keeps every set in full."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_routing.prefix.index import DEFAULT_POOL_TOKENS, SPECULATIVE_S, PrefixIndex

NAMES = "abc"
PROMPT = st.lists(st.integers(0, 2), max_size=5)
STEP = st.tuples(
    st.sampled_from(["dispatch", "stored", "removed", "cleared", "exact", "guess", "wait", "retain"]),
    st.sampled_from(NAMES),
    PROMPT,
)


def chain(prompt: list[int]) -> list[int]:
    """One number for each prefix, the same for the same prefix."""
    return [hash(tuple(prompt[: n + 1])) for n in range(len(prompt))]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Model:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.until: dict[tuple[str, int], float] = {}
        self.exact: set[str] = set()

    def dispatch(self, name: str, hashes: list[int]) -> None:
        until = self.clock() + SPECULATIVE_S if name in self.exact else math.inf
        for one in hashes:
            self.until[name, one] = max(until, self.until.get((name, one), 0.0))

    def drop(self, name: str, hashes: list[int] | None) -> None:
        for key in list(self.until):
            sure = self.until[key] == math.inf
            if key[0] == name and sure and (hashes is None or key[1] in hashes):
                del self.until[key]

    def match(self, hashes: list[int]) -> dict[str, int]:
        depths = {}
        for name in NAMES:
            held = [self.until.get((name, one), 0.0) > self.clock() for one in hashes]
            depths[name] = held.index(False) if False in held else len(held)
        return {name: depth for name, depth in depths.items() if depth}


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=30), asked=st.lists(PROMPT, min_size=1, max_size=6))
def test_matches_what_a_model_with_all_sets_matches(steps, asked):
    clock = Clock()
    index, model = PrefixIndex(clock=clock), Model(clock)
    for action, name, prompt in steps:
        hashes = chain(prompt)
        match action:
            case "dispatch":
                index.dispatched(name, hashes)
                model.dispatch(name, hashes)
            case "stored":
                index.stored(name, hashes[1:])
                model.until |= {(name, one): math.inf for one in hashes[1:]}
            case "removed":  # any of them: the rest of a prompt may stay, behind a hole
                index.removed(name, hashes[:2])
                model.drop(name, hashes[:2])
            case "cleared":
                index.cleared(name)
                model.drop(name, None)
            case "exact" | "guess":
                index.set_exact(name, action == "exact")
                (model.exact.add if action == "exact" else model.exact.discard)(name)
            case "wait":
                clock.now += 0.75
            case "retain":
                index.retain([one for one in NAMES if one != name])
                model.exact.discard(name)
                model.until = {key: until for key, until in model.until.items() if key[0] != name}
        for one in asked:
            assert index.match(chain(one)) == model.match(chain(one))
    index.retain([])
    assert len(index) == 0


@settings(max_examples=100, deadline=None)
@given(prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=40))
def test_a_guess_is_bounded_keeps_whole_prefixes_and_the_newest_prompt(prompts):
    index, blocks = PrefixIndex(), 6
    index.set_pool("a", blocks * 64, 16)
    known: dict[int, list[int]] = {}
    for prompt in prompts:
        hashes = chain(prompt)
        known |= {one: hashes[: n + 1] for n, one in enumerate(hashes)}
        index.dispatched("a", hashes)
        held = index.view("a").held
        assert len(held) <= blocks
        assert all(shorter in held for one in held for shorter in known[one])
        assert index.match(hashes) == {"a": len(hashes)}


def test_speculation_ends_unless_it_is_confirmed():
    clock = Clock()
    index = PrefixIndex(clock=clock)
    index.set_exact("a", True)
    index.dispatched("a", [1, 2, 3])
    index.stored("a", [1, 2])
    assert index.match([1, 2, 3]) == {"a": 3}
    clock.now += SPECULATIVE_S
    assert index.match([1, 2, 3]) == {"a": 2}


def test_a_removal_that_was_on_its_way_does_not_undo_a_dispatch():
    index = PrefixIndex(clock=Clock())
    index.set_exact("a", True)
    index.dispatched("a", [1])
    index.removed("a", [1])
    assert index.match([1]) == {"a": 1}


def test_who_says_too_much_does_not_fill_the_memory():
    index = PrefixIndex()
    index.set_exact("a", True)
    for start in range(0, 100_000, 1000):
        index.stored("a", range(start, start + 1000))
    assert len(index) <= 2 * DEFAULT_POOL_TOKENS // 64


def test_more_backends_than_a_machine_word_has_bits():
    index = PrefixIndex()
    for number in range(100):
        index.dispatched(str(number), list(range(1, number + 2)))
    assert index.match(list(range(1, 101))) == {str(number): number + 1 for number in range(100)}
    index.retain(["7", "99"])
    index.dispatched("new", [1])
    assert index.match([1, 2]) == {"new": 1, "7": 2, "99": 2}


def test_a_long_run_of_distinct_prompts_leaves_nothing_behind():
    clock, draw = Clock(), random.Random(0)
    index = PrefixIndex(clock=clock)
    index.set_pool("guess", 6400, 16)
    index.set_exact("exact", True)
    for _ in range(3000):
        clock.now += 0.01
        for name in ("guess", "exact"):
            index.dispatched(name, [draw.getrandbits(64) for _ in range(5)])
    index.match([])
    assert len(index.view("guess").held) == 100
    assert len(index.view("exact").held) <= 5 * 200
    assert len(index) == len(index.view("guess").held) + len(index.view("exact").held)
