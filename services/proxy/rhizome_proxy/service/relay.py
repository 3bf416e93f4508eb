"""All RPCs that one engine answers, but Connect: one request, one or more answers, passed on as bytes."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_proxy.kinds.base import EngineCall
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.router import Router
from rhizome_proxy.service.continuation import Continuation
from rhizome_proxy.service.route import ENGINE_LOST, Departure, Route, is_loss, may_try_next
from rhizome_telemetry.propagation import from_metadata, to_metadata
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError, from_rpc_error

_now = time.monotonic
Context = grpc.aio.ServicerContext[bytes, bytes]

_REQUESTS: Final[dict[str, type[Message]]] = {
    "Generate": GenerateRequest,
    "Embed": engine_pb2.EmbedRequest,
    "GetModelInfo": engine_pb2.GetModelInfoRequest,
    "GetTokenizer": engine_pb2.GetTokenizerRequest,
    "Tokenize": engine_pb2.TokenizeRequest,
    "Detokenize": engine_pb2.DetokenizeRequest,
}
"""Request messages by method; all of them name a model."""


class RelayService:
    """Sends a request to one engine after another until one answers, then passes its messages through."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Handlers by method. On the wire a unary answer is a stream of one message, so all are streams."""
        return {
            method: grpc.unary_stream_rpc_method_handler(functools.partial(self._relay, method, message))
            for method, message in _REQUESTS.items()
        }

    async def _relay(
        self, method: str, message: type[Message], payload: bytes, context: Context
    ) -> AsyncIterator[bytes]:
        request: Any = _parse(method, message, payload)
        generation = request if isinstance(request, GenerateRequest) else None
        route = Route(
            self._router, method, generation, request.model, from_metadata(context.invocation_metadata())
        )
        # Only a generation tells pieces of an answer before it has the whole.
        continuation = Continuation(generation, _now()) if generation is not None else None
        seen = False
        try:
            while True:
                attempt = route.next_attempt()
                call = attempt.backend.engine.call(
                    method,
                    payload,
                    timeout_s=self._time_left(context),
                    metadata=to_metadata(attempt.trace_parent),
                )
                attempt.backend.cuts.add(call.cancel)
                begun = False
                try:
                    while (answer := await _read(call, attempt.backend)) is not None:
                        if not begun:
                            begun = True
                            route.answered()
                        told = continuation.take(answer, _now()) if continuation is not None else answer
                        if told is not None:
                            seen = True
                            yield told
                    break
                except EngineError as error:
                    why = _departure(error, begun=begun)
                    if why is None:
                        raise
                    possible = continuation is not None and continuation.possible
                    route.leave(error, why, seen=seen, possible=possible)
                    if seen and why is Departure.LOST:
                        assert continuation is not None and generation is not None
                        if not continuation.resume():
                            yield continuation.end(_now())
                            break
                        payload = generation.SerializeToString()
                finally:
                    attempt.backend.cuts.discard(call.cancel)
                    call.cancel()
            route.end()
        except EngineError as error:
            if seen and may_try_next(error):
                # UNAVAILABLE promises that nothing was emitted, and a caller would send the request again.
                error = route.broken_off(error)
            route.end(error.code.name, error.message, failed=not seen)
            raise error from None
        finally:
            # Unless the request ended above, the caller is gone: this task was cancelled.
            route.end("CANCELLED", "the caller is gone")

    def _time_left(self, context: Context) -> float | None:
        limits = (context.time_remaining(), self._router.timeout_s)
        return min((limit for limit in limits if limit is not None), default=None)


def _departure(error: EngineError, *, begun: bool) -> Departure | None:
    """Why an error ends an attempt and not the request, `None` where it ends the request."""
    if is_loss(error) and (begun or error.reason == ENGINE_LOST):
        return Departure.LOST
    if begun or not may_try_next(error):
        return None
    return Departure.REFUSED if error.reason else Departure.UNREACHED


async def _read(call: EngineCall, backend: Backend) -> bytes | None:
    """The next message of a call; `None` at the end.

    Raises:
        EngineError: what the engine says, or UNAVAILABLE when it is gone.
    """
    try:
        answer = await call.read()
    except grpc.aio.AioRpcError as failure:
        error = from_rpc_error(failure)
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            # Engines give a reason; without one it is grpc that speaks, about a connection.
            backend.suspect(f"a call broke: {error.message}")
        if error.code is grpc.StatusCode.CANCELLED:
            # The engine did it: our own cancellation arrives as CancelledError.
            error = EngineError(grpc.StatusCode.UNAVAILABLE, "it cancelled the call")
        raise error from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # So grpc tells that the channel was closed under the call.
        raise EngineError(grpc.StatusCode.UNAVAILABLE, "its connection was closed") from None
    return answer if isinstance(answer, bytes) else None


def _parse(method: str, message: type[Message], payload: bytes) -> Message:
    try:
        return message.FromString(payload)
    except DecodeError as error:
        raise EngineError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the request of {ENGINE_SERVICE}/{method} is no {message.DESCRIPTOR.full_name}: {error}",
        ) from None
