"""All RPCs that one engine answers, but Connect: one request, one or more answers, passed on as bytes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_proxy.kinds.base import EngineCall
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.service.route import Route, Router, engine_lost, may_try_next
from rhizome_telemetry.propagation import from_metadata, to_metadata
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError, from_rpc_error

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
        started = done = False
        try:
            while not done:
                attempt = route.next_attempt()
                call = attempt.backend.engine.call(
                    method,
                    payload,
                    timeout_s=context.time_remaining(),
                    metadata=to_metadata(attempt.trace_parent),
                )
                try:
                    while (answer := await _read(call, attempt.backend)) is not None:
                        started = True
                        yield answer
                    done = True
                except EngineError as error:
                    if started or not may_try_next(error):
                        raise
                    route.refused(error)
                finally:
                    call.cancel()
            route.end()
        except EngineError as error:
            if started and error.code is grpc.StatusCode.UNAVAILABLE:
                # UNAVAILABLE promises that nothing was emitted, and a caller would send the request again.
                error = engine_lost(attempt.backend, error)
            route.end(error.code.name, error.message, failed=not started)
            raise error from None
        finally:
            # Unless the request ended above, the caller is gone: this task was cancelled.
            route.end("CANCELLED", "the caller is gone")


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
