"""EngineAdminService, on a listener of its own on the loopback interface.

The core answers; text becomes token ids here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from rhizome.engine.v1 import engine_admin_service_pb2 as messages
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_engine.front.core_link import CoreLink
from rhizome_engine.front.text_prompt import prompt_ids
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.servicer import EngineAdminServicerBase

Context = grpc.aio.ServicerContext[Any, Any]


class EngineAdminService(EngineAdminServicerBase):
    """The prefix cache and draining; the other methods come later and answer UNIMPLEMENTED.

    Args:
        link: gives the link to a serving core or raises EngineError.
        tokenizer: the model's.
        on_drain: called before the core drains, so that nobody sends new requests.
    """

    def __init__(
        self, link: Callable[[], CoreLink], tokenizer: Tokenizer, on_drain: Callable[[], None]
    ) -> None:
        self._link = link
        self._tokenizer = tokenizer
        self._on_drain = on_drain

    async def FlushCache(  # noqa: N802
        self, request: messages.FlushCacheRequest, context: Context
    ) -> messages.FlushCacheResponse:
        """Drop every cached prefix that no request holds."""
        return messages.FlushCacheResponse.FromString(await self._call("FlushCache", request))

    async def WarmPrefix(  # noqa: N802
        self, request: messages.WarmPrefixRequest, context: Context
    ) -> messages.WarmPrefixResponse:
        """Compute a prompt into the prefix cache, and pin it if asked to."""
        tokenised = messages.WarmPrefixRequest()
        tokenised.CopyFrom(request)
        tokenised.token_ids.CopyFrom(TokenIds(ids=await prompt_ids(request, self._tokenizer)))
        return messages.WarmPrefixResponse.FromString(await self._call("WarmPrefix", tokenised))

    async def UnpinPrefix(  # noqa: N802
        self, request: messages.UnpinPrefixRequest, context: Context
    ) -> messages.UnpinPrefixResponse:
        """Let a pinned prefix be evicted again."""
        return messages.UnpinPrefixResponse.FromString(await self._call("UnpinPrefix", request))

    async def ListPins(  # noqa: N802
        self, request: messages.ListPinsRequest, context: Context
    ) -> messages.ListPinsResponse:
        """The pinned prefixes."""
        return messages.ListPinsResponse.FromString(await self._call("ListPins", request))

    async def GetCacheStats(  # noqa: N802
        self, request: messages.GetCacheStatsRequest, context: Context
    ) -> messages.GetCacheStatsResponse:
        """What the prefix cache was good for."""
        return messages.GetCacheStatsResponse.FromString(await self._call("GetCacheStats", request))

    async def Drain(  # noqa: N802
        self, request: messages.DrainRequest, context: Context
    ) -> messages.DrainResponse:
        """Refuse new requests and return when the open ones ended; the engine stays drained."""
        self._on_drain()
        return messages.DrainResponse.FromString(await self._call("Drain", request))

    async def _call(self, method: str, request: Message) -> bytes:
        # Whoever asked decides how long to wait: the caller's deadline cancels this.
        link = self._link()
        results = await link.ask(link.client.call(method, request.SerializeToString(), timeout_s=None))
        return results[0]
