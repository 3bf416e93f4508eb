"""Overload in front of simulated engines: goodput, and what a light tenant notices of a heavy one.

    python benchmarks/admission.py [--seconds N] [--seeds N]

The proxy's own admission runs in virtual time in front of engines with the simulator's laws. Load is twice
what they can do. One tenant sends a tenth of what the other sends; both draw from the same prompts and
outputs. Reports come every 250 ms, requests go to the backend with room that has least open for its slots.

`capacity` is what the engines do behind an endless backlog, `throughput` what they do here over that, and
`goodput` the part of it for requests that got their first token within 10 s. `light_p99_ratio` is the p99 of
the light tenant's time to its first token over what it is without the other. `direct` is without admission.
`request_us` is processor time of a request's way through the queue. The last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import selectors
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhizome.engine.v1.load_pb2 import Load
from rhizome_launcher.simulate.physics import Physics
from rhizome_routing.admission import (
    Admissions,
    AdmissionSettings,
    Fleet,
    NotAdmitted,
    PriorityClass,
    RoomRules,
    Sent,
    Ticket,
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
        """Let the time to the next timer pass."""
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
    in_time: bool = False


class Engine:
    """A server in virtual time; also what the routing sees of it."""

    def __init__(self, name: str, physics: Physics, *, silent: bool = False) -> None:
        self.name, self.physics, self.silent = name, physics, silent
        self.weight, self.priority, self.busy = 1.0, 0, False
        self.load_max_age_s = 2.0
        self.report: LoadReport | None = None
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.tokens = self.in_time = 0
        self._work = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """See `Candidate`."""
        return self.room.in_flight

    def foreign_requests(self) -> int | None:
        """See `Candidate`."""
        return 0 if self.report is not None else None

    def submit(self, prompt: int, output: int) -> Job:
        """Take a request."""
        loop = asyncio.get_running_loop()
        job = Job(prompt, output, loop.create_future(), loop.create_future())
        self.waiting.append(job)
        self._work.set()
        return job

    async def run(self) -> None:
        """Compute steps for ever."""
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
        self.in_time += job.in_time
        if not job.first.done():
            job.first.set_result(None)
        if not job.output:
            job.done.set_result(None)

    def tell(self, now: float) -> None:
        """Report the load."""
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
    refused: int = 0


def draw(dice: random.Random) -> tuple[int, int]:
    """Tokens of a prompt and of its answer."""
    prompt = min(8000, max(16, int(dice.lognormvariate(math.log(600), 0.9))))
    return prompt, min(600, max(4, int(dice.lognormvariate(math.log(80), 0.7))))


class World:
    """One run."""

    def __init__(
        self, engines: list[Engine], tenants: Sequence[Tenant], *, admit: bool, seconds: float, seed: int
    ) -> None:
        self.engines, self.tenants, self.admit, self.seconds = engines, tenants, admit, seconds
        self.seed = seed
        self.per_s = self.in_time_per_s = 0.0
        self.clock = asyncio.get_running_loop().time
        self.fleet = Fleet(lambda group: self.engines, self.clock)
        self.admissions = Admissions(AdmissionSettings(), self.fleet, self.clock)
        for engine in engines:
            engine.room = self.fleet.new_room(RoomRules())

    async def run(self) -> None:
        """Warm up, measure, and end all of it."""
        tasks = [asyncio.create_task(engine.run()) for engine in self.engines]
        tasks.append(asyncio.create_task(self._report()))
        tasks += [asyncio.create_task(self._send(tenant)) for tenant in self.tenants]
        await asyncio.sleep(WARM_UP_S)
        for tenant in self.tenants:
            tenant.first_s.clear()
            tenant.refused = 0
        for engine in self.engines:
            engine.tokens = engine.in_time = 0
        await asyncio.sleep(self.seconds)
        self.per_s = sum(engine.tokens for engine in self.engines) / self.seconds
        self.in_time_per_s = sum(engine.in_time for engine in self.engines) / self.seconds
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
            if took <= IN_TIME_S:
                job.in_time = True
                engine.in_time += prompt + 1
            sent.answered()
            await job.done
            used = prompt + output
        finally:
            job.gone = True
            sent.left()
            if ticket is not None:
                ticket.release(used)

    def _pick(self) -> Engine:
        roomy = [one for one in self.engines if self.fleet.free(one)] if self.admit else []
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
    """All but the largest hundredth are below."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def capacity_per_s(fleet: str, seconds: float, seed: int) -> tuple[float, float]:
    """Requests and tokens per second behind an endless backlog."""
    world = run(fleet, [Tenant("flood", 400.0)], admit=False, seconds=seconds, seed=seed)
    dice = random.Random(seed)
    mean = sum(sum(draw(dice)) for _ in range(10_000)) / 10_000
    return world.per_s / mean, world.per_s


def measure(fleet: str, seconds: float, seeds: Sequence[int], *, direct: bool = True) -> dict[str, float]:
    """All figures of one fleet, over all seeds; `direct` also those without admission."""
    alone: list[float] = []
    first_s: dict[bool, list[float]] = {True: [], False: []}
    sums: dict[str, float] = defaultdict(float)
    for seed in seeds:
        requests, tokens = capacity_per_s(fleet, min(seconds, 60.0), seed)
        light_per_s, heavy_per_s = 2 * requests / 11, 20 * requests / 11
        light = Tenant("light", light_per_s)
        run(fleet, [light], admit=True, seconds=seconds, seed=seed)
        alone += light.first_s
        sums["capacity_tokens_per_s"] += tokens
        for admit, label in ((True, "admission"), (False, "direct"))[: 1 + direct]:
            light, heavy = Tenant("light", light_per_s), Tenant("heavy", heavy_per_s)
            world = run(fleet, [light, heavy], admit=admit, seconds=seconds, seed=seed)
            first_s[admit] += light.first_s
            sums[f"{label}_throughput"] += world.per_s / tokens
            sums[f"{label}_goodput"] += world.in_time_per_s / tokens
            sums[f"{label}_light_refused"] += light.refused
    figures = {name: value / len(seeds) for name, value in sums.items()}
    figures["light_alone_p99_ms"] = 1e3 * p99(alone)
    figures["admission_light_p99_ratio"] = p99(first_s[True]) / p99(alone)
    if direct:
        figures["direct_light_p99_ratio"] = p99(first_s[False]) / p99(alone)
    return figures


def cost_us(backends: int, *, full: bool, requests: int = 5000) -> float:
    """Processor time of one request's way through the queue, in front of so many backends."""
    engines = [Engine(str(number), Physics()) for number in range(backends)]
    fleet = Fleet(lambda group: engines, lambda: 0.0)
    admissions = Admissions(AdmissionSettings(), fleet, lambda: 0.0)
    queue = admissions.of("")
    running: deque[tuple[Ticket, Sent, Engine]] = deque()

    def place(ticket: Ticket, engine: Engine) -> None:
        assert ticket.admitted
        sent = engine.room.sent(500)
        sent.answered()
        running.append((ticket, sent, engine))

    for engine in engines:
        engine.room = fleet.new_room(RoomRules())
    for engine in engines * (64 if full else 1):
        place(queue.offer("first", tokens=500), engine)
    for engine in engines:
        load = Load(running_requests=64, waiting_requests=4 if full else 0)
        engine.report = LoadReport(load, engine.in_flight, 0.0)
    waiting = deque(queue.offer(f"tenant {number % 50}", tokens=500) for number in range(200 if full else 0))
    began = time.process_time()
    for number in range(requests):
        ticket, sent, engine = running.popleft()
        waiting.append(queue.offer(f"tenant {number % 50}", tokens=500))
        sent.left()
        ticket.release(500)
        if waiting[0].admitted:
            place(waiting.popleft(), engine)
        if not running:
            raise RuntimeError("nobody was admitted")
    return 1e6 * (time.process_time() - began) / requests


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual seconds of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    options = parser.parse_args()
    figures = {}
    for fleet in FLEETS:
        for name, value in measure(fleet, options.seconds, range(options.seeds)).items():
            print(f"{fleet:20} {name:28} {value:10.3f}")
            figures[f"{fleet.replace(', ', '_').replace(' ', '_')}_{name}"] = round(value, 4)
    for backends, full in itertools.product((1, 64), (False, True)):
        name = f"request_us_{backends}_backends_{'full' if full else 'idle'}"
        figures[name] = round(cost_us(backends, full=full), 1)
        print(f"{'':20} {name:28} {figures[name]:10.1f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
