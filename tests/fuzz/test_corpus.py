"""Whatever a client sends: an answer that is right, the same process, its memory, and nobody else waits."""

from __future__ import annotations

import json
import random
import statistics
import time
import urllib.request
from collections.abc import Iterator
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

SEED = 11
THINKING_S = 0.03
"""How long the engine takes for an answer; the bundled model, the smallest there is, takes longer."""
MAX_GROWTH_BYTES = 64 * 2**20
MAX_SLOWDOWN = 2.0
SLICE_S = 0.4
"""Hostile and quiet times alternate, so that what else this machine does falls upon both."""
SLICES_EACH_ROUND = 4
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
    return attacks


def test_the_corpus_is_answered_and_hurts_nobody(
    gateway: GatewayProcess, corpus: list[Attack], tmp_path: Path
) -> None:
    pid = gateway.pid
    client = HostileClient(gateway)
    for attack in [*bombs(), *broken_bodies()]:  # loads what is loaded once, and makes the heap as large as it gets
        client.send(attack)
    before = gateway.rss_bytes
    quiet, hostile = [], []
    with SteadyClient(gateway.url, tmp_path, MODEL) as steady:
        steady.wait_until(lambda: len(steady.asked()) > 20, "it asks")
        rest = iter(corpus)
        while True:
            began = time.monotonic()
            if not any([client.send(a) is None for a in slice_of(rest, began + SLICE_S)]):
                break
            between = time.monotonic()
            time.sleep(SLICE_S)
            hostile.append((began, between))
            quiet.append((between, time.monotonic()))
        asked = steady.asked()
    grown = gateway.rss_bytes - before
    rounds = slowdowns(asked, hostile, quiet)
    slowest = sorted(client.seconds.items(), key=lambda one: -one[1])[:5]
    print(f"\n{sum(client.statuses.values())} attacks: {dict(client.statuses)}; slowest {slowest}")
    print(f"memory {before >> 20} MiB, and {grown / 2**20:.1f} MiB more; slowdown of others {rounds}")
    print(f"worst {max(one.seconds for one in asked):.3f} s of {len(asked)}")
    assert not client.failures, client.report
    assert (gateway.pid, gateway.running) == (pid, True)
    assert {one.status for one in asked} == {200}
    assert "Traceback" not in gateway.output
    assert grown <= MAX_GROWTH_BYTES
    assert slowest[0][1] < SLOWEST_S
    assert statistics.median(rounds) <= MAX_SLOWDOWN


def slice_of(rest: Iterator[Attack], until: float) -> Iterator[Attack]:
    while time.monotonic() < until and (attack := next(rest, None)) is not None:
        yield attack


def slowdowns(
    asked: list[Asked], hostile: list[tuple[float, float]], quiet: list[tuple[float, float]]
) -> list[float]:
    """How many times as long as in quiet times the slowest twentieth took; for each round of slices."""
    found = []
    for first in range(0, len(hostile), SLICES_EACH_ROUND):
        which = slice(first, first + SLICES_EACH_ROUND)
        attacked, alone = during(asked, hostile[which]), during(asked, quiet[which])
        if min(len(attacked), len(alone)) >= 20:
            found.append(round(p95(attacked) / p95(alone), 2))
    assert len(found) >= 3
    return found


def during(asked: list[Asked], times: list[tuple[float, float]]) -> list[float]:
    return [one.seconds for one in asked if any(begin <= one.started < end for begin, end in times)]


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]
