"""EngineAdminService, on a listener of its own on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from rhizome.engine.v1 import engine_admin_service_pb2 as messages
from rhizome_engine.front.core_link import CoreLink
from rhizome_transport.servicer import EngineAdminServicerBase

Context = grpc.aio.ServicerContext[Any, Any]


class EngineAdminService(EngineAdminServicerBase):
    """Flush and drain; the other methods come later and answer UNIMPLEMENTED.

    Args:
        link: gives the link to a serving core or raises EngineError.
        on_drain: called before the core drains, so that nobody sends new requests.
    """

    def __init__(self, link: Callable[[], CoreLink], on_drain: Callable[[], None]) -> None:
        self._link = link
        self._on_drain = on_drain

    async def FlushCache(  # noqa: N802
        self, request: messages.FlushCacheRequest, context: Context
    ) -> messages.FlushCacheResponse:
        """Drop every cached prefix that no request holds."""
        return messages.FlushCacheResponse.FromString(await self._call("FlushCache", request))

    async def Drain(  # noqa: N802
        self, request: messages.DrainRequest, context: Context
    ) -> messages.DrainResponse:
        """Refuse new requests and return when the open ones ended; the engine stays drained."""
        self._on_drain()
        return messages.DrainResponse.FromString(await self._call("Drain", request))

    async def _call(self, method: str, request: messages.FlushCacheRequest | messages.DrainRequest) -> bytes:
        # Whoever asked decides how long to wait: the caller's deadline cancels this.
        link = self._link()
        results = await link.ask(link.client.call(method, request.SerializeToString(), timeout_s=None))
        return results[0]
