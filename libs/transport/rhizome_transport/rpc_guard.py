"""What surrounds every RPC of a server: counting, refusing while draining, turning errors into statuses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from rhizome_telemetry.logs import log_request_id, log_trace_id
from rhizome_telemetry.propagation import from_metadata
from rhizome_transport.errors import EngineError
from rhizome_transport.servicer import abort_with, unimplemented

_log = logging.getLogger(__name__)

_UNGUARDED_PREFIXES = ("/grpc.health.", "/grpc.reflection.")

Context = grpc.aio.ServicerContext[Any, Any]


class RpcGuard(grpc.aio.ServerInterceptor):
    """Lets servicers raise `EngineError`, and knows how many requests are under way.

    Health and reflection are left alone. RPCs that last as long as their peer likes (`Connect`, `Watch...`)
    are not counted, because waiting for them would make every drain run into its limit.

    Args:
        endless_methods: names of such RPCs, without the service.
    """

    def __init__(self, endless_methods: frozenset[str]) -> None:
        self._endless = endless_methods
        self.in_flight = 0
        self.draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the RPC's behaviour, keeping its kind."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_UNGUARDED_PREFIXES):
            return handler
        counted = method.rpartition("/")[2] not in self._endless
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is None:
                continue
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            # gRPC would log a traceback for every request that is no message, and call the status UNKNOWN.
            reads = handler.request_deserializer
            if kind.startswith("unary"):
                behaviour, reads = _reading(behaviour, reads or bytes, method), None
            return make(
                self._guard(behaviour, method, counted),
                request_deserializer=reads,
                response_serializer=handler.response_serializer,
            )
        return handler

    def _guard(self, behaviour: Callable[..., Any], method: str, counted: bool) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: object, context: Context) -> AsyncIterator[object]:
                for_request = _mark_log_lines(context)
                await self._refuse_while_draining(context)
                self.in_flight += counted
                try:
                    async with aclosing(behaviour(request, context)) as answers:
                        async for answer in answers:
                            yield answer
                except EngineError as error:
                    await abort_with(context, error)
                except grpc.aio.AbortError:
                    raise
                except NotImplementedError:
                    await abort_with(context, unimplemented(method.strip("/")))
                except Exception:
                    await self._report(context, method)
                finally:
                    self.in_flight -= counted
                    if for_request:
                        _log.debug("%s ended", method)

            return stream

        async def answer(request: object, context: Context) -> object:
            for_request = _mark_log_lines(context)
            await self._refuse_while_draining(context)
            self.in_flight += counted
            try:
                return await behaviour(request, context)
            except EngineError as error:
                await abort_with(context, error)
            except grpc.aio.AbortError:
                raise
            except NotImplementedError:
                await abort_with(context, unimplemented(method.strip("/")))
            except Exception:
                await self._report(context, method)
            finally:
                self.in_flight -= counted
                if for_request:
                    _log.debug("%s ended", method)

        return answer

    async def _refuse_while_draining(self, context: Context) -> None:
        if self.draining:
            await abort_with(
                context,
                EngineError(
                    grpc.StatusCode.UNAVAILABLE,
                    "this server is shutting down; send the request to another one",
                    reason="DRAINING",
                ),
            )

    async def _report(self, context: Context, method: str) -> NoReturn:
        _log.exception("%s failed", method)
        text = f"{method} failed inside the server; its log has the traceback"
        await abort_with(context, EngineError(grpc.StatusCode.INTERNAL, text))


def _mark_log_lines(context: Context) -> bool:
    """Have lines that this RPC's task writes name the caller's request, if it has one; whether it has."""
    parent = from_metadata(context.invocation_metadata())
    if parent is None:
        return False
    log_trace_id.set(parent.trace_id)
    log_request_id.set(parent.request_id)
    return True


def _reading(behaviour: Callable[..., Any], reads: Callable[[bytes], Any], method: str) -> Callable[..., Any]:
    """The behaviour, of the same kind, which reads its request itself and refuses what is no message."""
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: bytes, context: Context) -> AsyncIterator[object]:
            try:
                async with aclosing(behaviour(reads(request), context)) as answers:
                    async for answer in answers:
                        yield answer
            except DecodeError as error:
                raise _no_message(method, error) from None

        return stream

    async def answer(request: bytes, context: Context) -> object:
        try:
            return await behaviour(reads(request), context)
        except DecodeError as error:
            raise _no_message(method, error) from None

    return answer


def _no_message(method: str, error: DecodeError) -> EngineError:
    text = f"the request is no message that {method.strip('/')} takes: {error}"
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, text)
