"""What the server is doing now, as `/v1/metrics` tells it to a page that polls."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from rhizome.engine.v1.load_pb2 import Load
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.metrics.activity import WINDOW_S, Activity, Sample
from rhizome_gateway.metrics.engine_load import cache_section, engine_section, queue_section
from rhizome_gateway.metrics.host import Gpus, Host
from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.metrics.refreshed import Refreshed
from rhizome_transport.errors import EngineError

_SAMPLE_EVERY_S = 5.0
_SAMPLE_UNASKED_EVERY_S = 30.0
"""While nobody looks; so that who comes finds something to compare with."""
_ENGINE_TIMEOUT_S = 1.0
_FRESH_S = 0.5


class LiveFigures:
    """Gathers the figures when they are asked for, at most twice a second, and never waits long for any.

    Args:
        metrics: the gateway's own numbers.
        session: the engine to ask.
    """

    def __init__(self, metrics: GatewayMetrics, session: EngineSession) -> None:
        self._metrics = metrics
        self._session = session
        self._activity = Activity()
        self._host = Host()
        self._load = Refreshed(self._read_load, fresh_s=_FRESH_S)
        self._gpus = Refreshed(Gpus().read, fresh_s=_FRESH_S)
        self._sample = Refreshed(self._read_sample, fresh_s=_FRESH_S)
        self._figures: dict[str, Any] = {}
        self._gathered_at = float("-inf")
        self._asked_at = float("-inf")
        self._sampling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to remember, inside the running loop."""
        self._sampling = asyncio.create_task(self._keep_sampling(), name="activity samples")

    async def close(self) -> None:
        """Stop."""
        if self._sampling is not None:
            self._sampling.cancel()
            with suppress(asyncio.CancelledError):
                await self._sampling
        for refreshed in (self._load, self._gpus, self._sample):
            await refreshed.close()

    async def read(self) -> dict[str, Any]:
        """The figures, at most half a second old."""
        self._asked_at = time.monotonic()
        if self._asked_at - self._gathered_at > _FRESH_S:
            self._figures = await self._gather()
            self._gathered_at = time.monotonic()
        return self._figures

    async def load(self) -> Load | None:
        """The engine's load, as fresh as the figures; None while it is not known."""
        return await self._load.latest()

    async def _gather(self) -> dict[str, Any]:
        load, gpus, sample = await asyncio.gather(
            self._load.latest(), self._gpus.latest(), self._sample.latest()
        )
        served = self._session.known_model
        return {
            "cpu": self._host.cpu(),
            "memory": self._host.memory(),
            "gpu": gpus[0] if gpus else None,
            "gpus": gpus or [],
            "engine": None if load is None else engine_section(load),
            "cache": None if load is None else cache_section(load),
            "queue": None if load is None else queue_section(load),
            "gateway": {
                "ready": self._session.ready,
                "model": None if served is None else served.info.model,
                "window_seconds": int(WINDOW_S),
            }
            | ({} if sample is None else self._activity.until(sample, self._first_tokens())),
            "timestamp": int(time.time()),
        }

    def _first_tokens(self) -> list[float] | None:
        return self._metrics.first_tokens_since(time.monotonic() - WINDOW_S)

    async def _read_load(self) -> Load | None:
        try:
            async with asyncio.timeout(_ENGINE_TIMEOUT_S):
                return await self._session.client.load()
        except (EngineError, TimeoutError):
            return None

    async def _read_sample(self) -> Sample:
        at = time.monotonic()
        if self._metrics.shared:  # the numbers of other workers are in files
            return Sample.of(await asyncio.to_thread(self._metrics.activity), at)
        return Sample.of(self._metrics.activity(), at)

    async def _keep_sampling(self) -> None:
        await self._gpus.latest()  # the driver's library takes its time at first
        while True:
            self._activity.add(await self._read_sample())
            asked = time.monotonic() - self._asked_at < WINDOW_S
            await asyncio.sleep(_SAMPLE_EVERY_S if asked else _SAMPLE_UNASKED_EVERY_S)
