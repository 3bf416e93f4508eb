"""Whatever a client sends: an answer that is right, the same process, its memory, and nobody else waits."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.fuzz.attack import MODEL, Attack
from tests.fuzz.bombs import bombs
from tests.fuzz.broken_bodies import broken_bodies, odd_headers
from tests.fuzz.hostile_client import HostileClient
from tests.fuzz.wrong_fields import wrong_fields

from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.running_stack import DEMO_MODEL
from rhizome_testing.steady_client import Asked, SteadyClient
from rhizome_testing.talking_process import TalkingProcess
from rhizome_testing.time_bounds import assert_within

SEED = 11
THINKING_S = 0.02
"""How long the engine takes for an answer. No engine answers at once, and what others lose is compared with
what they would wait in any case; so the factor below means 20 ms more, not twice the gateway's own time."""
MAX_SLOWDOWN = 2.0
SLICE_S, QUIET_S = 0.3, 0.15
"""Hostile and quiet times alternate, so that what else this machine does falls upon both."""
SLICES_EACH_ROUND = 12
FULL = os.environ.get("RHIZOME_FUZZ") == "full"
"""`make fuzz`: all of the corpus, and how others fare meanwhile. Otherwise a part of it, in a minute, and no
figures that another process on the machine could spoil."""
EVERY = 1 if FULL else 6
MAX_GROWTH_BYTES = 64 * 2**20
LONGEST_WAIT_S = 1.0 if FULL else 5.0
"""Nothing stops the others for longer, not even a body of 4 MiB that is nothing but brackets."""
SLOWEST_S = 15.0
"""Compiling a grammar is given up after 10 s."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """In front of an engine whose model has a template with tools, and grammars."""
    logs = tmp_path_factory.mktemp("corpus")
    arguments = ("--pause-s", str(THINKING_S), "--tokenizer", str(DEMO_MODEL))
    with TalkingProcess(logs, *arguments) as engine, GatewayProcess(engine.target, logs) as gateway:
        gateway.wait_ready()
        yield gateway


@pytest.fixture(scope="module")
def corpus(gateway: GatewayProcess) -> list[Attack]:
    """All of it, in an order that spreads what is heavy."""
    with urllib.request.urlopen(f"{gateway.url}/openapi.json") as answer:
        document: Any = json.load(answer)
    attacks = [*wrong_fields(document), *broken_bodies(), *odd_headers(), *bombs()]
    random.Random(SEED).shuffle(attacks)
    return attacks[::EVERY]


@pytest.mark.timeout(900)  # a minute where nobody else computes
def test_the_corpus_is_answered_and_hurts_nobody(
    gateway: GatewayProcess, corpus: list[Attack], tmp_path: Path
) -> None:
    pid = gateway.pid
    with HostileClient(gateway) as client:
        for attack in (*bombs(), *broken_bodies()):
            client.send(attack)  # the warm-up: what is loaded once, and heaps as large as they get
    with HostileClient(gateway) as client, SteadyClient(gateway.url, tmp_path, MODEL) as steady:
        steady.wait_until(lambda: len(steady.asked()) > 20, "it asks")
        slices = alternate(gateway, client, iter(corpus))
        asked = steady.asked()
        grown = growth(slices)
        for _ in range(2):
            if grown > MAX_GROWTH_BYTES:  # a leak grows each time, what the allocator keeps does not
                grown = growth(alternate(gateway, client, iter(corpus)))
        for attack in corpus:
            if attack.name in client.slower_than(SLOWEST_S):
                assert_within(SLOWEST_S, partial(client.seconds_of, attack))
    rounds = slowdowns(asked, slices) if FULL else []
    slowest_s, slowest = max((end - begin, name) for name, begin, end in client.spans)
    longest = max(asked, key=lambda one: one.seconds)
    sizes = [one.rss_bytes >> 20 for one in slices]
    print(f"\n{sum(client.statuses.values())} attacks, {dict(client.statuses)}; {slowest}: {slowest_s:.1f} s")
    print(f"memory {sizes[0]} to {sizes[-1]} MiB, {max(sizes)} at most; grown by {grown / 2**20:.1f} MiB")
    print(f"others: {rounds} times as slow, {len(asked)} requests")
    print(f"one took {longest.seconds:.2f} s, beside {client.under_way(longest.started, longest.seconds)}")
    assert not client.failures, client.report
    assert (gateway.pid, gateway.running) == (pid, True)
    assert {one.status for one in asked} == {200}
    assert "Traceback" not in gateway.output
    assert grown <= MAX_GROWTH_BYTES
    assert not FULL or statistics.median(rounds) <= MAX_SLOWDOWN
    assert longest.seconds < LONGEST_WAIT_S


@dataclass(frozen=True)
class Slice:
    """Attacks were sent from `began` to `between`, none from there to `ended`."""

    began: float
    between: float
    ended: float
    rss_bytes: int


def alternate(gateway: GatewayProcess, client: HostileClient, attacks: Iterator[Attack]) -> list[Slice]:
    """Send all attacks in slices with quiet times between."""
    slices = []
    attack = next(attacks, None)
    while attack is not None:
        began = time.monotonic()
        while attack is not None and time.monotonic() < began + SLICE_S:
            client.send(attack)
            attack = next(attacks, None)
        between = time.monotonic()
        time.sleep(QUIET_S)
        slices.append(Slice(began, between, time.monotonic(), gateway.rss_bytes))
    return slices


def growth(slices: list[Slice]) -> float:
    """From the first third to the last one, of which each has attacks of all kinds.

    Medians, because a large body shows for as long as it is there, and the allocator gives memory back late:
    a single value would be a matter of luck, in both directions.
    """
    third = len(slices) // 3
    early, late = slices[:third], slices[-third:]
    return statistics.median(s.rss_bytes for s in late) - statistics.median(s.rss_bytes for s in early)


def slowdowns(asked: list[Asked], slices: list[Slice]) -> list[float]:
    """How many times as long as in quiet times the slowest twentieth took; for each round of slices."""
    found = []
    for first in range(0, len(slices), SLICES_EACH_ROUND):
        of_round = slices[first : first + SLICES_EACH_ROUND]
        attacked = [a.seconds for a in asked if any(s.began <= a.started < s.between for s in of_round)]
        alone = [a.seconds for a in asked if any(s.between <= a.started < s.ended for s in of_round)]
        if min(len(attacked), len(alone)) >= 20:
            found.append(round(p95(attacked) / p95(alone), 2))
    assert len(found) >= 3
    return found


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]
