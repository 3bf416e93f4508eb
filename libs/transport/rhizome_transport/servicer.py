"""Base classes for servicers that implement some RPCs of a contract and decline the others politely."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc_status import rpc_status

from rhizome.engine.v1 import engine_admin_service_pb2_grpc, engine_service_pb2_grpc
from rhizome_transport.channel import ENGINE_ADMIN_SERVICE, ENGINE_SERVICE
from rhizome_transport.errors import EngineError


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: EngineError) -> NoReturn:
    """End an RPC with an error and its details (`grpc-status-details-bin`)."""
    await context.abort_with_status(rpc_status.to_status(error.to_rpc_status()))
    raise AssertionError("abort_with_status always raises")


def unimplemented(method: str, advice: str = "") -> EngineError:
    """The error for an RPC that this server does not offer."""
    text = f"{method} is not implemented by this server"
    return EngineError(grpc.StatusCode.UNIMPLEMENTED, f"{text}; {advice}" if advice else text)


def declined(method: str, advice: str = "") -> Callable[..., Awaitable[Any]]:
    """A servicer method, unary or streaming, that answers UNIMPLEMENTED.

    The generated ones raise NotImplementedError on a thread, which fills the log with tracebacks.
    """

    async def decline(self: object, request: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await abort_with(context, unimplemented(method, advice))

    return decline


class EngineServicerBase(engine_service_pb2_grpc.EngineServiceServicer):
    """Override what you offer; the rest answers UNIMPLEMENTED."""

    Connect: Any = declined(f"{ENGINE_SERVICE}/Connect")
    Generate: Any = declined(f"{ENGINE_SERVICE}/Generate")
    Embed: Any = declined(f"{ENGINE_SERVICE}/Embed")
    Abort: Any = declined(f"{ENGINE_SERVICE}/Abort")
    GetModelInfo: Any = declined(f"{ENGINE_SERVICE}/GetModelInfo")
    GetTokenizer: Any = declined(f"{ENGINE_SERVICE}/GetTokenizer")
    Tokenize: Any = declined(f"{ENGINE_SERVICE}/Tokenize")
    Detokenize: Any = declined(f"{ENGINE_SERVICE}/Detokenize")
    GetLoad: Any = declined(f"{ENGINE_SERVICE}/GetLoad")
    WatchLoad: Any = declined(f"{ENGINE_SERVICE}/WatchLoad")
    WatchKvEvents: Any = declined(f"{ENGINE_SERVICE}/WatchKvEvents")
    GetCacheTree: Any = declined(f"{ENGINE_SERVICE}/GetCacheTree")


class EngineAdminServicerBase(engine_admin_service_pb2_grpc.EngineAdminServiceServicer):
    """Override what you offer; the rest answers UNIMPLEMENTED."""

    FlushCache: Any = declined(f"{ENGINE_ADMIN_SERVICE}/FlushCache")
    WarmPrefix: Any = declined(f"{ENGINE_ADMIN_SERVICE}/WarmPrefix")
    UnpinPrefix: Any = declined(f"{ENGINE_ADMIN_SERVICE}/UnpinPrefix")
    ListPins: Any = declined(f"{ENGINE_ADMIN_SERVICE}/ListPins")
    GetCacheStats: Any = declined(f"{ENGINE_ADMIN_SERVICE}/GetCacheStats")
    Drain: Any = declined(f"{ENGINE_ADMIN_SERVICE}/Drain")
    ListAdapters: Any = declined(f"{ENGINE_ADMIN_SERVICE}/ListAdapters")
    LoadAdapter: Any = declined(f"{ENGINE_ADMIN_SERVICE}/LoadAdapter")
    UnloadAdapter: Any = declined(f"{ENGINE_ADMIN_SERVICE}/UnloadAdapter")
    LoadModel: Any = declined(f"{ENGINE_ADMIN_SERVICE}/LoadModel")
    UnloadModel: Any = declined(f"{ENGINE_ADMIN_SERVICE}/UnloadModel")
    Profile: Any = declined(f"{ENGINE_ADMIN_SERVICE}/Profile")
