"""SGLang: its schedulers tell their load.

Its `/health` generates a token unless it was told not to, so it is asked rarely; between, another route tells
whether it lives.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.base import Probe
from rhizome_backends.http_server import HttpBackend, load_of

_HEALTH_S: Final = 5.0


class SglangServer(HttpBackend):
    """An SGLang server."""

    kind = "sglang"
    _page_size: int | None = None
    _healthy_until = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sources = ((b"/v1/loads?include=core", self._read_loads), (b"/get_load", _read_old_load))

    async def probe(self, timeout_s: float) -> Probe:
        """See `HttpBackend.probe`."""
        now = asyncio.get_running_loop().time()
        thorough = self._new or now >= self._healthy_until
        self.health_path = b"/health" if thorough else self.models_path
        probe = await super().probe(timeout_s)
        if thorough and probe.serving:
            self._healthy_until = now + _HEALTH_S
        return probe

    async def learn(self, timeout_s: float) -> None:
        """Also how large its pages are, which is asked by another name in older versions."""
        await super().learn(timeout_s)
        for path in (b"/server_info", b"/get_server_info"):
            info = await self._ask(path, timeout_s)
            if info.status == 200:
                self._page_size = int(orjson.loads(info.body)["page_size"])
                return

    def _read_loads(self, body: bytes) -> Load | None:
        """Sums over its data-parallel ranks."""
        ranks = orjson.loads(body)["loads"]
        size = self._page_size

        def together(name: str) -> int | None:
            counts = [rank.get(name) for rank in ranks]
            return None if None in counts else sum(counts)

        def pages(name: str) -> int | None:
            tokens = together(name)
            return tokens // size if size and tokens is not None else None

        return load_of(
            running_requests=together("num_running_reqs"),
            waiting_requests=together("num_waiting_reqs"),
            waiting_tokens=together("num_waiting_uncached_tokens"),
            kv_pages_total=pages("max_total_num_tokens"),
            kv_pages_in_use=pages("num_used_tokens"),
            page_size=size,
        )


def _read_old_load(body: bytes) -> Load | None:
    """Older versions count those that wait among all."""
    ranks = orjson.loads(body)
    waiting = sum(rank["num_waiting_reqs"] for rank in ranks)
    running = sum(rank["num_reqs"] for rank in ranks) - waiting
    return load_of(running_requests=running, waiting_requests=waiting)
