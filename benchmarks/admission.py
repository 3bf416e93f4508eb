"""Overload in front of simulated engines: goodput, and what a light tenant notices of a heavy one.

    python benchmarks/admission.py [--seconds N] [--seed N]

The proxy's own admission runs in virtual time in front of engines with the simulator's laws. Load is twice
what they can do. One tenant sends a tenth of what the other sends; both draw from the same prompts and
outputs. Reports come every 250 ms, requests go to the backend with room that has least open for its slots.

`capacity` is what the engines do behind an endless backlog; `goodput` the tokens of requests that got their
first token in time, over capacity; `light` the p99 of the light tenant's time to its first token, over what
it is alone. `direct` is without admission. The last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhizome.engine.v1.load_pb2 import Load
from rhizome_launcher.simulate.physics import Physics
from rhizome_routing.admission import (
    AdmissionSettings,
    Admissions,
    Fleet,
    NotAdmitted,
    PriorityClass,
    RoomRules,
)
from rhizome_routing.candidate import LoadReport

REPORT_S = 0.25
IN_TIME_S = 10.0
LONGEST_WAIT_S = 8.0
WARM_UP_S = 15.0
EXPECTED_OUTPUT = 100


class VirtualSelector(selectors.SelectSelector):
    """Nothing to select: time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for each other")
        self.now += timeout
        return []


def run_virtual(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a loop whose clock jumps to the next timer."""
    selector = VirtualSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(make())
    finally:
        loop.close()


@dataclass(slots=True)
class Job:
    """A request at an engine."""

    prompt: int
    output: int
    first: asyncio.Future[None]
    done: asyncio.Future[None]
    gone: bool = False


class Engine:
    """A server in virtual time; also what the routing sees of it."""

    def __init__(self, name: str, physics: Physics, *, silent: bool = False) -> None:
        self.name, self.physics, self.silent = name, physics, silent
        self.weight, self.priority, self.busy = 1.0, 0, False
        self.load_max_age_s = 2.0
        self.report: LoadReport | None = None
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.tokens = 0
        self._work = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return self.room.in_flight

    def foreign_requests(self) -> int | None:
        return 0 if self.report is not None else None

    def submit(self, prompt: int, output: int) -> Job:
        loop = asyncio.get_running_loop()
        job = Job(prompt, output, loop.create_future(), loop.create_future())
        self.waiting.append(job)
        self._work.set()
        return job

    async def run(self) -> None:
        physics = self.physics
        while True:
            self.running = [job for job in self.running if not job.done.done() and not job.gone]
            while self.waiting and len(self.running) < physics.max_running:
                job = self.waiting.popleft()
                if not job.gone:
                    self.running.append(job)
            if not self.running:
                self._work.clear()
                await self._work.wait()
                continue
            decodes = [job for job in self.running if not job.prompt]
            left, chunks = physics.step_tokens - len(decodes), []
            for job in self.running:
                if job.prompt and left:
                    chunks.append((job, min(job.prompt, left)))
                    left -= chunks[-1][1]
            await asyncio.sleep(physics.step_s(sum(size for _, size in chunks), len(decodes)))
            for job, size in chunks:
                job.prompt -= size
                self.tokens += size
                if not job.prompt:
                    self._token(job)
            for job in decodes:
                self._token(job)

    def _token(self, job: Job) -> None:
        job.output -= 1
        self.tokens += 1
        if not job.first.done():
            job.first.set_result(None)
        if not job.output:
            job.done.set_result(None)

    def tell(self, now: float) -> None:
        if not self.silent:
            load = Load(running_requests=len(self.running), waiting_requests=len(self.waiting))
            self.report = LoadReport(load, self.room.in_flight, now)


FLEETS: dict[str, Callable[[], list[Engine]]] = {
    "4 alike": lambda: [Engine(f"e{i}", Physics(max_running=64)) for i in range(4)],
    "4 alike, silent": lambda: [Engine(f"e{i}", Physics(max_running=64), silent=True) for i in range(4)],
    "unlike": lambda: [
        Engine("large", Physics(max_running=128, prefill_tokens_per_s=24000, itl_per_request_ms=0.1)),
        Engine("medium", Physics(max_running=32)),
        Engine("small", Physics(max_running=8, prefill_tokens_per_s=3000)),
    ],
}


@dataclass
class Tenant:
    """What one tenant sends and gets."""

    name: str
    per_s: float
    first_s: list[float] = field(default_factory=list)
    tokens_in_time: int = 0
    refused: int = 0


def draw(dice: random.Random) -> tuple[int, int]:
    """Tokens of a prompt and of its answer."""
    prompt = min(8000, max(16, int(dice.lognormvariate(math.log(600), 0.9))))
    return prompt, min(600, max(4, int(dice.lognormvariate(math.log(80), 0.7))))


class World:
    """One run."""

    def __init__(self, engines: list[Engine], tenants: Sequence[Tenant], *, admit: bool, seconds: float, seed: int
    ) -> None:
        self.engines, self.tenants, self.admit, self.seconds = engines, tenants, admit, seconds
        self.seed = seed
        loop = asyncio.get_running_loop()
        self.clock = loop.time
        self.fleet = Fleet(lambda group: self.engines, self.clock)
        self.admissions = Admissions(AdmissionSettings(), self.fleet, self.clock)
        for engine in engines:
            engine.room = self.fleet.new_room(RoomRules())

    async def run(self) -> None:
        tasks = [asyncio.create_task(engine.run()) for engine in self.engines]
        tasks.append(asyncio.create_task(self._report()))
        tasks += [asyncio.create_task(self._send(tenant)) for tenant in self.tenants]
        await asyncio.sleep(WARM_UP_S)
        for tenant in self.tenants:
            tenant.first_s.clear()
            tenant.tokens_in_time = tenant.refused = 0
        before = sum(engine.tokens for engine in self.engines)
        await asyncio.sleep(self.seconds)
        self.tokens = sum(engine.tokens for engine in self.engines) - before
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
                tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self) -> None:
        for turn in itertools.cycle(range(len(self.engines))):
            await asyncio.sleep(REPORT_S / len(self.engines))
            self.engines[turn].tell(self.clock())
            self.admissions.pump()

    async def _send(self, tenant: Tenant) -> None:
        jobs, dice = set(), random.Random(f"{self.seed} {tenant.name}")  # the same beside others as alone
        while True:
            await asyncio.sleep(dice.expovariate(tenant.per_s))
            jobs.add(task := asyncio.create_task(self._request(tenant, *draw(dice))))
            task.add_done_callback(jobs.discard)

    async def _request(self, tenant: Tenant, prompt: int, output: int) -> None:
        began = self.clock()
        ticket = None
        if self.admit:
            try:
                ticket = self.admissions.of("").offer(
                    tenant.name, PriorityClass.NORMAL, prompt + EXPECTED_OUTPUT, LONGEST_WAIT_S
                )
                await ticket.wait()
            except NotAdmitted:
                tenant.refused += 1
                return
        engine = self._pick()
        sent = engine.room.sent(prompt)
        job = engine.submit(prompt, output)
        used = 0
        try:
            await job.first
            took = self.clock() - began
            tenant.first_s.append(took)
            sent.answered()
            await job.done
            used = prompt + output
            if took <= IN_TIME_S:
                tenant.tokens_in_time += used
        finally:
            job.gone = True
            sent.left()
            if ticket is not None:
                ticket.release(used)

    def _pick(self) -> Engine:
        roomy = [one for one in self.engines if one.room.free(one) > 0] if self.admit else []
        return min(roomy or self.engines, key=lambda one: (one.in_flight + 1) / one.physics.max_running)


def run(fleet: str, tenants: Sequence[Tenant], *, admit: bool, seconds: float, seed: int) -> World:
    """Run a world to its end."""
    worlds: list[World] = []

    async def main() -> None:
        worlds.append(World(FLEETS[fleet](), tenants, admit=admit, seconds=seconds, seed=seed))
        await worlds[0].run()

    run_virtual(main)
    return worlds[0]


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def capacity_per_s(fleet: str, seconds: float, seed: int) -> tuple[float, float]:
    """Requests and tokens per second behind an endless backlog."""
    flood = Tenant("flood", 400.0)
    world = run(fleet, [flood], admit=False, seconds=seconds, seed=seed)
    tokens = world.tokens / seconds
    dice = random.Random(seed)
    mean = sum(sum(draw(dice)) for _ in range(10000)) / 10000
    return tokens / mean, tokens


def measure(fleet: str, seconds: float, seed: int) -> dict[str, float]:
    """All figures of one fleet."""
    requests, tokens = capacity_per_s(fleet, seconds, seed)
    light_per_s, heavy_per_s = 2 * requests / 11, 20 * requests / 11
    alone = Tenant("light", light_per_s)
    run(fleet, [alone], admit=True, seconds=seconds, seed=seed)
    figures = {"capacity_tokens_per_s": tokens, "light_alone_p99_ms": 1e3 * p99(alone.first_s)}
    for admit, label in ((True, "admission"), (False, "direct")):
        light, heavy = Tenant("light", light_per_s), Tenant("heavy", heavy_per_s)
        world = run(fleet, [light, heavy], admit=admit, seconds=seconds, seed=seed)
        figures[f"{label}_goodput"] = (light.tokens_in_time + heavy.tokens_in_time) / seconds / tokens
        figures[f"{label}_throughput"] = world.tokens / seconds / tokens
        figures[f"{label}_light_p99_ratio"] = p99(light.first_s) / p99(alone.first_s)
        figures[f"{label}_light_refused"] = light.refused
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual seconds of each run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = {}
    for fleet in FLEETS:
        for name, value in measure(fleet, options.seconds, options.seed).items():
            print(f"{fleet:20} {name:28} {value:10.3f}")
            figures[f"{fleet.replace(', ', '_').replace(' ', '_')}_{name}"] = round(value, 4)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
