"""What all servers with an HTTP API have in common: asked for health, load and models at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import orjson

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.base import Probe
from rhizome_backends.vllm_events import follow_vllm
from rhizome_relay.fetch import BadAnswerError, Fetched, fetch
from rhizome_relay.picker import Origin
from rhizome_relay.pool import Pools
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.errors import EngineError

Source = tuple[bytes, Callable[[bytes], Load | None]]
"""A path that tells the load, and how to read what it answers."""

REFRESH_S: Final = 10.0
"""What changes rarely is asked for when a server is new and then so often,"""

RETRY_S: Final = 1.0
"""and where it did not come, so much later."""

_NO_ROUTE: Final = frozenset((400, 404, 405, 501))
_UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError)
_COUNTABLE: Final = 1 << 32


class HttpBackend:
    """A server with an HTTP API; see `base.HttpServer`. Each kind says what to ask it.

    Args:
        pools: connections, shared with the relay.
        origin: where it listens.
        headers: sent with every request.
        events: ZeroMQ address of its KV events in vLLM's format, and, behind a comma, of their replay.
    """

    kind = ""
    health_path = b"/health"
    models_path = b"/v1/models"
    sources: Sequence[Source] = ()
    refreshes = True

    def __init__(
        self, pools: Pools, origin: Origin, headers: Sequence[tuple[bytes, bytes]] = (), *, events: str = ""
    ) -> None:
        self.origin = origin
        self.headers = headers
        self._pools = pools
        self._events = events
        self._models: tuple[str, ...] = ()
        self._source = 0
        self._refresh_at = 0.0
        self._new = True  # or may be, since it was away
        self._lives = 0

    async def probe(self, timeout_s: float) -> Probe:
        """Ask for all at once. Only its health must be answered: what else is missing is unknown."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        refreshing = self._new or (self.refreshes and loop.time() >= self._refresh_at)
        if refreshing:
            self._source = 0
        asking_load = asyncio.create_task(self._ask_load(timeout_s))
        asking = [asking_load, *([asyncio.create_task(self._refresh(timeout_s))] if refreshing else ())]
        try:
            reason = refusal(await self._ask(self.health_path, timeout_s))
            await asyncio.wait(asking, timeout=max(0.0, deadline - loop.time()))
        except EngineError as error:
            self._new = self._new or error.code is grpc.StatusCode.UNAVAILABLE
            raise
        finally:
            for task in asking:
                task.cancel()
        if reason:
            self._new = True
            return Probe(serving=False, reason=reason)
        self._lives += self._new
        self._new = False
        load = asking_load.result() if asking_load.done() else None
        if load is not None:
            load.instance_id = str(self._lives)  # another one: its cache is empty, as far as anybody knows
        return Probe(serving=True, load=load, models=self._models)

    async def follow(self, index: PrefixIndex, name: str) -> None:
        """Read its KV events, where it publishes them."""
        if self._events:
            endpoint, _, replay = self._events.partition(",")
            await follow_vllm(index, name, endpoint, replay_endpoint=replay)

    async def close(self) -> None:
        """Nothing to do: its connections are the relay's."""

    async def learn(self, timeout_s: float) -> None:
        """Ask for what changes rarely.

        Raises:
            EngineError: as `ask`; also errors of reading what came.
        """
        document = orjson.loads((await self._ask(self.models_path, timeout_s)).body)
        self._models = self.read_models(document)

    def read_models(self, document: Any) -> tuple[str, ...]:
        """The names in what `models_path` answers."""
        return tuple(str(model["id"]) for model in document["data"] or ())

    async def _refresh(self, timeout_s: float) -> None:
        """What does not come leaves standing what was known."""
        now = asyncio.get_running_loop().time()
        self._refresh_at = now + RETRY_S
        with contextlib.suppress(EngineError, *_UNREADABLE):
            await self.learn(timeout_s)
            self._refresh_at = now + REFRESH_S

    async def _ask_load(self, timeout_s: float) -> Load | None:
        with contextlib.suppress(EngineError, *_UNREADABLE):
            while self._source < len(self.sources):
                path, read = self.sources[self._source]
                answer = await self._ask(path, timeout_s)
                if answer.status not in _NO_ROUTE:
                    return read(answer.body) if answer.status == 200 else None
                self._source += 1
        return None

    async def _ask(self, path: bytes, timeout_s: float) -> Fetched:
        return await ask(self._pools, self.origin, path, self.headers, timeout_s)


async def ask(
    pools: Pools, origin: Origin, path: bytes, headers: Sequence[tuple[bytes, bytes]], timeout_s: float
) -> Fetched:
    """Fetch with errors as `base.Server.probe` has them.

    Raises:
        EngineError: UNAVAILABLE or DEADLINE_EXCEEDED.
    """
    try:
        return await fetch(pools, origin, path, headers=headers, timeout_s=timeout_s)
    except TimeoutError:
        message = f"{path.decode()} was not answered within {timeout_s:.3g} s"
        raise EngineError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
    except (OSError, BadAnswerError) as error:
        raise EngineError(grpc.StatusCode.UNAVAILABLE, f"{path.decode()}: {error}") from None


def refusal(answer: Fetched) -> str:
    """Why a server does not serve by its answer; a route that it lacks says that it lives, and no more."""
    if answer.status < 400 or answer.status in _NO_ROUTE:
        return ""
    if answer.status in (401, 403):
        return f"it answers {answer.status}: its key is missing or wrong"
    try:
        said = str(orjson.loads(answer.body)["error"]["message"])[:200]
    except _UNREADABLE:
        said = "it is loading, draining or broken"
    return f"it answers {answer.status}: {said}"


def load_of(**figures: float | None) -> Load | None:
    """A load report of fields by name, `None` without any; what is no possible count is unknown."""
    load = Load()
    for name, value in figures.items():
        if value is not None and 0 <= value < _COUNTABLE:
            setattr(load, name, int(value))
    return load if load.ListFields() else None
