"""RPCs of EngineService that concern all engines at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.load_pb2 import Load, RequestTotals
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.registry import Registry
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.load_watch import watch_load
from rhizome_transport.servicer import unimplemented

Context = grpc.aio.ServicerContext[bytes, bytes]

_ABORT_TIMEOUT_S: Final = 2.0
_TREE_TIMEOUT_S: Final = 1.0
_SUMMED: Final = (
    "running_requests",
    "waiting_requests",
    "waiting_tokens",
    "kv_pages_total",
    "kv_pages_in_use",
    "kv_pages_cached",
    "generated_tokens_per_second",
)
_SUMMED_TIMES: Final = ("queue_time", "prefill_time", "decode_time")
_log = logging.getLogger(__name__)


def sum_loads(backends: Iterable[Backend], *, instance_id: str, sequence: int) -> Load:
    """Add up the last reports of `backends`.

    A field is set only where every backend reports it, because a sum that leaves an engine out looks like
    spare room. `page_size` is set where it is the same everywhere; means are left out.
    """
    loads = [backend.report.load if backend.report is not None else Load() for backend in backends]
    total = Load(instance_id=instance_id, sequence=sequence)
    if not loads:
        return total
    for field in _SUMMED:
        if all(load.HasField(field) for load in loads):
            setattr(total, field, sum(getattr(load, field) for load in loads))
    if all(load.HasField("page_size") for load in loads) and len({load.page_size for load in loads}) == 1:
        total.page_size = loads[0].page_size
    if all(load.HasField("totals") for load in loads):
        total.totals.CopyFrom(_sum_totals([load.totals for load in loads]))
    return total


def _sum_totals(totals: list[RequestTotals]) -> RequestTotals:
    summed = RequestTotals()
    for counter in RequestTotals.DESCRIPTOR.fields:
        if counter.message_type is None:
            setattr(summed, counter.name, sum(getattr(one, counter.name) for one in totals))
    for time in _SUMMED_TIMES:
        if all(one.HasField(time) for one in totals):
            getattr(summed, time).CopyFrom(_sum_durations(getattr(one, time) for one in totals))
    return summed


def _sum_durations(durations: Iterable[Duration]) -> Duration:
    summed = Duration()
    summed.FromNanoseconds(sum(duration.ToNanoseconds() for duration in durations))
    return summed


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
        with contextlib.suppress(DecodeError):  # the engines say what is wrong with it
            self._on_abort(engine_pb2.AbortRequest.FromString(request).request_ids)
        await asyncio.gather(*(self._abort_at(backend, request) for backend in self._registry))
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
        told = await asyncio.gather(*(self._trees_at(backend, request) for backend in self._registry.ready()))
        return engine_pb2.GetCacheTreeResponse(trees=itertools.chain(*told)).SerializeToString()

    async def _trees_at(self, backend: Backend, request: bytes) -> list[engine_pb2.CacheTree]:
        call = backend.engine.call("GetCacheTree", request, timeout_s=_TREE_TIMEOUT_S)
        try:
            trees = engine_pb2.GetCacheTreeResponse.FromString(await call.read()).trees
        except (grpc.aio.AioRpcError, DecodeError, TypeError):  # it has none, or does not answer in time
            return []
        finally:
            call.cancel()
        for tree in trees:
            tree.engine = backend.name
        return list(trees)

    async def _load(self) -> Load:
        return sum_loads(self._registry.ready(), instance_id=self._instance_id, sequence=next(self._sequence))

    async def _abort_at(self, backend: Backend, request: bytes) -> None:
        call = backend.engine.call("Abort", request, timeout_s=_ABORT_TIMEOUT_S)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            _log.warning("backend %s did not take an abort: %s", backend.name, error.details())
        finally:
            call.cancel()
