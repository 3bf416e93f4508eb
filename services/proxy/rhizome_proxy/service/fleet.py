"""RPCs of EngineService that concern all engines at once."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.load_pb2 import Load
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.registry import Registry
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.load_sum import sum_loads
from rhizome_transport.load_watch import watch_load
from rhizome_transport.servicer import unimplemented

Context = grpc.aio.ServicerContext[bytes, bytes]

_ABORT_TIMEOUT_S: Final = 2.0
_TREE_TIMEOUT_S: Final = 1.0
_log = logging.getLogger(__name__)


class FleetService:
    """Answers for the pool as a whole.

    Args:
        registry: the pool.
        instance_id: this proxy's.
        on_abort: told the ids of requests that engines are about to end.
    """

    def __init__(
        self,
        registry: Registry,
        instance_id: str,
        on_abort: Callable[[Iterable[str]], None] = lambda request_ids: None,
    ) -> None:
        self._on_abort = on_abort
        self._registry = registry
        self._instance_id = instance_id
        self._sequence = itertools.count(1)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Handlers by method."""
        return {
            "Abort": grpc.unary_unary_rpc_method_handler(self._abort),
            "GetLoad": grpc.unary_unary_rpc_method_handler(self._get_load),
            "WatchLoad": grpc.unary_stream_rpc_method_handler(self._watch_load),
            "WatchKvEvents": grpc.unary_stream_rpc_method_handler(self._watch_kv_events),
            "GetCacheTree": grpc.unary_unary_rpc_method_handler(self._get_cache_tree),
        }

    async def _abort(self, request: bytes, context: Context) -> bytes:
        """Ask every engine, because ids do not tell where a request is."""
        self._on_abort(engine_pb2.AbortRequest.FromString(request).request_ids)
        engines = [backend for backend in self._registry if not backend.spec.http]
        await asyncio.gather(*(self._abort_at(engine, request) for engine in engines))
        return engine_pb2.AbortResponse().SerializeToString()

    async def _get_load(self, request: bytes, context: Context) -> bytes:
        """The sum over the engines that get requests, as of their last reports."""
        return engine_pb2.GetLoadResponse(load=await self._load()).SerializeToString()

    async def _watch_load(self, request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        """The same sum, and again whenever it changed."""
        try:
            message = engine_pb2.WatchLoadRequest.FromString(request)
        except DecodeError:
            raise EngineError(
                grpc.StatusCode.INVALID_ARGUMENT, "the request is no WatchLoadRequest message"
            ) from None
        async with aclosing(watch_load(self._load, message)) as loads:
            async for response in loads:
                yield response.SerializeToString()

    async def _watch_kv_events(self, request: bytes, context: Context) -> NoReturn:
        raise unimplemented(f"{ENGINE_SERVICE}/WatchKvEvents", "ask each engine")

    async def _get_cache_tree(self, request: bytes, context: Context) -> bytes:
        """The trees of all engines that can tell, under their names in the pool."""
        ours = [backend for backend in self._registry.ready() if not backend.spec.http]
        told = await asyncio.gather(*(self._trees_at(backend, request) for backend in ours))
        return engine_pb2.GetCacheTreeResponse(trees=itertools.chain(*told)).SerializeToString()

    async def _trees_at(self, backend: Backend, request: bytes) -> list[engine_pb2.CacheTree]:
        call = backend.engine.call("GetCacheTree", request, timeout_s=_TREE_TIMEOUT_S)
        try:
            answer = await call.read()
            trees = engine_pb2.GetCacheTreeResponse.FromString(cast("bytes", answer)).trees
        except (grpc.aio.AioRpcError, EngineError, DecodeError, TypeError):
            return []  # it has none, or does not answer in time
        finally:
            call.cancel()
        for tree in trees:
            tree.engine = backend.name
        return list(trees)

    async def _load(self) -> Load:
        reports = [backend.report for backend in self._registry.ready()]
        load = sum_loads([Load() if report is None else report.load for report in reports])
        load.instance_id, load.sequence = self._instance_id, next(self._sequence)
        return load

    async def _abort_at(self, backend: Backend, request: bytes) -> None:
        call = backend.engine.call("Abort", request, timeout_s=_ABORT_TIMEOUT_S)
        try:
            await call.read()
        except (grpc.aio.AioRpcError, EngineError) as error:
            _log.warning("backend %s did not take an abort: %s", backend.name, from_rpc_error(error).message)
        finally:
            call.cancel()
