"""Twice the load that the engines can take: what is in time, who waits for whom, what is done for nobody.

Four simulated engines behind the proxy; prompts and answers are those of `benchmarks/admission.py`, which
does the same in virtual time, without sockets. What the engines can do is measured without a proxy, behind an
endless backlog. Then come a light tenant alone, and beside one that sends ten times as much, together twice
what fits.

    goodput   tokens of answers that began within 10 s, prompts included, over what the engines can do
    light     p99 of the light tenant's time to its first token, over what it is alone
    wasted    callers leave, before the first token or in the middle: tokens that were generated and that no
              caller got, over all that were generated
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

import admission
from proxy_bench.bench import MODEL, Bench, progress
from proxy_bench.failover import engines, start_proxy
from proxy_bench.figures import Figure

from rhizome.engine.v1.generate_pb2 import GenerateRequest, StopConditions, TokenIds
from rhizome_testing.simulated_server import SimulatedServer
from rhizome_testing.storm import http_caller
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

ENGINES: Final = 4
IN_TIME_S: Final = 10.0
LONGEST_S: Final = 60.0
_BACKLOG: Final = 120
_LEAVING: Final = 0.4
_PHYSICS: Final = ("--max-running", "16", "--model", str(MODEL))


@dataclass(eq=False, slots=True)
class Asked:
    """One request.

    Attributes:
        prompt: tokens.
        tenant: whose.
        began_s: when, on the monotonic clock.
        first_at_s: when the first token came; 0 before.
        tokens: that came.
    """

    prompt: int
    tenant: str
    began_s: float = field(default_factory=time.monotonic)
    first_at_s: float = 0.0
    tokens: int = 0

    @property
    def first_s(self) -> float:
        """Until the first token; if none came, until now at least."""
        return (self.first_at_s or time.monotonic()) - self.began_s

    @property
    def good_tokens(self) -> int:
        """Prompt and answer so far, where it began in time."""
        return self.prompt + self.tokens if self.first_at_s and self.first_s <= IN_TIME_S else 0


Ask = Callable[[Asked, int], Awaitable[None]]


@dataclass(slots=True)
class Tenant:
    """Who asks, and how often."""

    name: str
    per_s: float


async def measure(bench: Bench) -> list[Figure]:
    """Both faces."""
    figures = []
    for face, kind in (("gRPC", "rhizome"), ("HTTP", "vllm")):
        async with engines(kind, bench, *_PHYSICS, count=ENGINES - 1) as (first, others):
            figures += await _face(bench, face, [first, *others])
    return figures


async def _face(bench: Bench, face: str, servers: Sequence[SimulatedServer]) -> list[Figure]:
    requests_per_s, tokens_per_s = await _capacity(bench, face, servers)
    progress(f"{face}: {requests_per_s:.0f} requests and {tokens_per_s:,.0f} tokens per second fit")
    # Who would begin too late is told so instead of being served.
    patience = ("--queue-timeout-s", str(IN_TIME_S - 2))
    proxy = start_proxy(bench, servers, *patience, http=True, name=f"overload-{face}")
    with proxy:
        await asyncio.to_thread(proxy.wait_ready, len(servers))
        client = _Grpc(proxy.port) if face == "gRPC" else _Http(proxy.http_port)
        light_per_s, heavy_per_s = 2 * requests_per_s / 11, 20 * requests_per_s / 11
        seconds = max(10.0, bench.seconds(28))
        alone, beside, good = [], [], 0.0
        for number in range(bench.rounds):
            light = Tenant("light", light_per_s)
            firsts, _ = await _send(client.ask, [light], seconds, number)
            alone += firsts
            firsts, in_time = await _send(client.ask, [light, Tenant("heavy", heavy_per_s)], seconds, number)
            beside += firsts
            good += in_time / tokens_per_s / bench.rounds
            progress(f"{face}: round {number + 1} of {bench.rounds}")
        wasted = await _wasted(bench, client.ask, servers, requests_per_s / 2)
        await client.close()
    together = {"alone": _p99(alone) * 1e3}
    return [
        Figure(f"{face}, goodput over what the engines can do", good, ">= 0.95"),
        Figure(f"{face}, light tenant's p99 to the first token, ms", _p99(beside) * 1e3, "", together),
        Figure(f"{face}, the same over what it is alone", _p99(beside) / _p99(alone), "<= 1.5"),
        Figure(f"{face}, tokens generated for nobody, share", wasted, "<= 0.01"),
    ]


async def _capacity(bench: Bench, face: str, servers: Sequence[SimulatedServer]) -> tuple[float, float]:
    """Requests and tokens per second behind a backlog that never ends, straight at the engines."""
    clients = [_Grpc(one.port) if face == "gRPC" else _Http(one.port) for one in servers]
    dice = random.Random(0)

    async def flood(client: _Grpc | _Http) -> None:
        while True:
            prompt, output = admission.draw(dice)
            await client.ask(Asked(prompt, "flood"), output)

    floods = [asyncio.create_task(flood(one)) for one in clients for _ in range(_BACKLOG // len(clients))]
    await asyncio.sleep(8.0)  # until the first prompts are through
    before, began = await _totals(servers), time.monotonic()
    await asyncio.sleep(bench.seconds(16))
    after, seconds = await _totals(servers), time.monotonic() - began
    await _stop(floods)
    for client in clients:
        await client.close()
    done = {name: (after[name] - before[name]) / seconds for name in before}
    return done["completed"], done["prompt_tokens"] + done["generated_tokens"]


async def _send(ask: Ask, tenants: Sequence[Tenant], seconds: float, seed: int) -> tuple[list[float], float]:
    """Let tenants ask for so long.

    Returns:
        Seconds to the first token of the first tenant's requests, and tokens per second of all that began in
        time; without the first quarter.
    """
    began = time.monotonic()
    asked: list[Asked] = []
    open_ones: set[asyncio.Task[None]] = set()

    async def arrive(tenant: Tenant) -> None:
        dice = random.Random(f"{seed} {tenant.name}")  # the same beside others as alone
        due = began
        while (due := due + dice.expovariate(tenant.per_s)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            prompt, output = admission.draw(dice)
            asked.append(this := Asked(prompt, tenant.name))
            open_ones.add(task := asyncio.create_task(ask(this, output)))
            task.add_done_callback(open_ones.discard)

    arriving = [asyncio.create_task(arrive(tenant)) for tenant in tenants]
    await asyncio.sleep(seconds / 4)
    before, warm = sum(one.good_tokens for one in asked), time.monotonic()
    await asyncio.gather(*arriving)
    good_per_s = (sum(one.good_tokens for one in asked) - before) / (time.monotonic() - warm)
    firsts = [one.first_s for one in asked if one.tenant == tenants[0].name and one.began_s > warm]
    await _stop(open_ones)
    return firsts, good_per_s


async def _stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    stopped = tuple(tasks)
    for task in stopped:
        task.cancel()
    await asyncio.gather(*stopped, return_exceptions=True)


async def _wasted(bench: Bench, ask: Ask, servers: Sequence[SimulatedServer], per_s: float) -> float:
    """Share of generated tokens that nobody got, where many leave."""
    dice, before = random.Random(5), await _totals(servers)
    asked: list[Asked] = []

    async def one() -> None:
        prompt, output = admission.draw(dice)
        asked.append(this := Asked(prompt, "hasty"))
        patience_s = dice.uniform(0.05, 2.0) if dice.random() < _LEAVING else LONGEST_S
        with suppress(TimeoutError):
            await asyncio.wait_for(ask(this, output), patience_s)

    running = []
    for _ in range(int(per_s * bench.seconds(16))):
        running.append(asyncio.create_task(one()))
        await asyncio.sleep(dice.expovariate(per_s))
    await asyncio.gather(*running)
    deadline = time.monotonic() + IN_TIME_S
    while time.monotonic() < deadline:
        if sum(one["running"] + one["waiting"] for one in await _states(servers)) == 0:
            break
        await asyncio.sleep(0.1)
    generated = (await _totals(servers))["generated_tokens"] - before["generated_tokens"]
    return max(0.0, 1 - sum(one.tokens for one in asked) / generated)


class _Grpc:
    def __init__(self, port: int) -> None:
        self._client = GrpcEngineClient(f"127.0.0.1:{port}", peer_name="tenants")
        self._dice = random.Random(7)

    async def ask(self, asked: Asked, output: int) -> None:
        request = GenerateRequest(
            tenant=asked.tenant,
            token_ids=TokenIds(ids=[self._dice.randrange(100_000) for _ in range(asked.prompt)]),
            stop=StopConditions(max_tokens=output),
        )
        try:
            async with aclosing(self._client.generate(request, timeout_s=LONGEST_S)) as events:
                async for event in events:
                    if event.HasField("delta"):
                        asked.first_at_s = asked.first_at_s or time.monotonic()
                        asked.tokens += len(event.delta.token_ids)
        except EngineError:
            pass  # refused, which is an answer, too

    async def close(self) -> None:
        await self._client.close()


class _Http:
    def __init__(self, port: int) -> None:
        self._port = port
        self._dice = random.Random(7)

    async def ask(self, asked: Asked, output: int) -> None:
        prompt = "".join(f" {self._dice.randrange(1000):03d}" for _ in range(asked.prompt))
        fields = {"model": http_caller.MODEL, "prompt": prompt, "max_tokens": output, "stream": True}
        body = json.dumps(fields)
        request = (
            "POST /v1/completions HTTP/1.1\r\nHost: tenants\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {asked.tenant}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_connection(
            lambda: _Counted(request.encode(), asked), "127.0.0.1", self._port
        )
        try:
            await exchange.ended
        finally:
            exchange.close()

    async def close(self) -> None:
        pass


class _Counted(http_caller.Exchange):
    """Counts tokens as they come; a refusal has none."""

    def __init__(self, request: bytes, asked: Asked) -> None:
        super().__init__(request)
        self._asked = asked

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        came = data.count(b'"text":" ')
        if came:
            self._asked.first_at_s = self._asked.first_at_s or time.monotonic()
            self._asked.tokens += came


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


async def _states(servers: Sequence[SimulatedServer]) -> list[dict[str, int]]:
    return [await asyncio.to_thread(server.state) for server in servers]


async def _totals(servers: Sequence[SimulatedServer]) -> dict[str, float]:
    names = ("completed", "prompt_tokens", "generated_tokens")
    totals = [state["totals"] for state in await _states(servers)]
    return {name: sum(one[name] for one in totals) for name in names}  # type: ignore[index]
