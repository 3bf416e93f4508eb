"""A relay with a fixed list of backends; as a program it is a proxy of its own process.

python static_proxy.py PORT [PORT...] prints its port, then serves until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence

import uvloop

from rhizome_relay.picker import Continuation, Ending, Origin, Outcome, Result, Target
from rhizome_relay.relay import Relay
from rhizome_relay.request import RelayRequest
from rhizome_relay.server import HttpServer


class StaticTarget:
    """A backend that never changes; remembers what became of its leases."""

    kind = "openai"

    def __init__(self, port: int, name: str = "", headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.name = name or f"backend-{port}"
        self.origin = Origin("127.0.0.1", port)
        self.headers = headers
        self.outcomes: list[Outcome] = []
        self.leased = 0

    @property
    def endings(self) -> list[Ending]:
        return [outcome.ending for outcome in self.outcomes]

    def body(self, request: RelayRequest) -> bytes:
        return request.body

    def lease(self, cut: Callable[[], None], heard_at: Callable[[], float]) -> StaticTarget:
        self.leased += 1
        return self

    def first_byte(self) -> None:
        pass

    def release(self, outcome: Outcome) -> None:
        self.leased -= 1
        self.outcomes.append(outcome)


class StaticPicker:
    """All targets, always in the same order, unless a test says otherwise."""

    def __init__(self, targets: Sequence[StaticTarget]) -> None:
        self.targets = targets
        self.results: list[Result] = []
        self.choose: Callable[[RelayRequest], Iterable[Target] | Awaitable[Iterable[Target]]] | None = None

    def pick(self, request: RelayRequest) -> Iterable[Target] | Awaitable[Iterable[Target]]:
        return self.targets if self.choose is None else self.choose(request)

    def continuation(self, request: RelayRequest) -> Continuation | None:
        return None

    def ended(self, request: RelayRequest, result: Result) -> None:
        self.results.append(result)


class CountingBudget:
    """Allows so many retries."""

    def __init__(self, retries: int = 1_000_000) -> None:
        self.retries = retries

    def on_request(self) -> None:
        pass

    def take(self) -> bool:
        self.retries -= 1
        return self.retries >= 0


async def _serve(ports: Sequence[int]) -> None:
    server = HttpServer(Relay(StaticPicker([StaticTarget(port) for port in ports]), CountingBudget()))
    print(await server.start("127.0.0.1", 0), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve([int(port) for port in sys.argv[1:]]))
