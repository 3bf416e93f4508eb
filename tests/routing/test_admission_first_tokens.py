"""The limit that times to the first token give."""

from __future__ import annotations

import heapq
import random

import pytest

from rhizome_routing.admission.first_tokens import FirstTokenLimit


def serve(
    limit: FirstTokenLimit,
    seconds: float,
    rate: float,
    slots: int,
    hold_s: float,
    seed: int,
    spread: float = 0.3,
) -> list[int]:
    """A server with so many slots, each held for `hold_s` after a first token at 0.2 s; limits over time."""
    dice, now, arrival = random.Random(seed), 0.0, 0.0
    queued: list[tuple[float, int, int]] = []
    events: list[tuple[float, int, float, int, int]] = []  # when, kind, sent at, others, tokens
    waiting = awaited = busy = 0
    limits = []
    while now < seconds:
        if not events or arrival <= events[0][0]:
            now = arrival
            arrival += dice.expovariate(rate)
            waiting += 1
        else:
            now, kind, sent_at, others, tokens = heapq.heappop(events)
            if kind == 0:
                awaited -= 1
                limit.answered(tokens, now - sent_at, others, now)
                heapq.heappush(events, (now + dice.expovariate(1 / hold_s), 1, 0.0, 0, 0))
            else:
                busy -= 1
        while waiting and awaited < limit.limit:
            waiting -= 1
            queued.append((now, awaited, dice.randint(100, 2000)))
            awaited += 1
        while queued and busy < slots:
            sent_at, others, tokens = queued.pop(0)
            busy += 1
            took = (0.1 + tokens * 1e-4) * dice.lognormvariate(0, spread)
            heapq.heappush(events, (now + took, 0, sent_at, others, tokens))
        limits.append(limit.limit)
    return limits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slots", [1, 4, 32])
def test_finds_the_slots_of_a_server_that_says_nothing(slots: int, seed: int):
    limit = FirstTokenLimit(1024)
    limits = serve(limit, 120.0, rate=2 * slots / 1.4, slots=slots, hold_s=1.2, seed=seed)
    late = limits[len(limits) // 2 :]
    assert max(late) <= 4 + slots // 2
    assert sum(late) / len(late) <= 4 + slots / 4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.3, 0.5])
@pytest.mark.parametrize("rate", [2, 20, 100])
def test_leaves_a_server_alone_that_answers_all_at_once(rate: int, spread: float, seed: int):
    limit = FirstTokenLimit(1024)
    limits = serve(limit, 60.0, rate, slots=10_000, hold_s=1.0, seed=seed, spread=spread)
    assert (
        min(limits[len(limits) // 4 :]) >= 0.3 * rate
    )  # as many as are on their way in 0.2 s, and half more


def test_recovers_from_a_limit_that_is_too_low():
    limit = FirstTokenLimit(1024)
    limit.limit, limit._patience = 1, 32
    limits = serve(limit, 120.0, rate=100, slots=10_000, hold_s=1.0, seed=0)
    assert limits[-1] >= 30
