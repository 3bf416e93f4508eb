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
from rhizome_backends.base import EngineCall
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.router import Router
from rhizome_proxy.service.answer import WAIT_STEP_S, Answer
from rhizome_proxy.service.route import Attempt, Route, not_admitted
from rhizome_routing.admission import NotAdmitted
from rhizome_telemetry.propagation import from_metadata, to_metadata
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.continuation import Continuation
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.split_request import SplitRequest

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
        try:
            request, model = _parse(message, payload)
        except DecodeError as error:
            raise _malformed(method, message, error) from None
        parent = from_metadata(context.invocation_metadata())
        route = Route(self._router, method, request, model, parent)
        # Only a generation tells pieces of an answer before it has the whole.
        continuation = None if request is None else Continuation(request)
        answer = Answer(route, continuation, self._router.resume_wait_s)
        limits = [one for one in (context.time_remaining(), self._router.timeout_s) if one is not None]
        deadline = time.monotonic() + min(limits) if limits else None
        try:
            await _admit(route)
            while True:
                attempt = answer.next_attempt()
                if attempt is None:
                    await asyncio.sleep(WAIT_STEP_S)
                    continue
                call = self._call(attempt, method, payload, deadline)
                try:
                    while (event := await _read(call, attempt.backend)) is not None:
                        seen = answer.take(event)
                        if seen is not None:
                            yield seen
                    break
                except EngineError as error:
                    # Engines give a reason; without one it is grpc that speaks, about a connection.
                    why = answer.departure(error, said=bool(error.reason))
                    last = answer.broke(error, why)
                    if last is not None:
                        yield last
                        break
                    if answer.seen and request is not None:
                        payload = request.serialize()
                finally:
                    attempt.backend.cuts.discard(call.cancel)
                    call.cancel()
            answer.end()
        except (EngineError, DecodeError) as failure:
            # Token ids are read only now, and only if somebody wants to know them.
            told = failure if isinstance(failure, EngineError) else _malformed(method, message, failure)
            answer.end(told.code.name, told.message)
            raise told from None
        finally:
            # Unless the request ended above, the caller is gone: this task was cancelled.
            answer.end("CANCELLED", "the caller is gone")

    def _call(self, attempt: Attempt, method: str, payload: bytes, deadline: float | None) -> EngineCall:
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        metadata = to_metadata(attempt.trace_parent)
        call = attempt.backend.engine.call(method, payload, timeout_s=timeout_s, metadata=metadata)
        attempt.backend.cuts.add(call.cancel)
        return call


async def _admit(route: Route) -> None:
    """Wait for room at the engines.

    Raises:
        EngineError: too much waits already, or it waited as long as it may (RESOURCE_EXHAUSTED).
    """
    ticket = route.offer()
    if ticket is not None:
        try:
            await ticket.wait()
        except NotAdmitted as refusal:
            raise not_admitted(refusal) from None


async def _read(call: EngineCall, backend: Backend) -> bytes | None:
    """The next message of a call; `None` at the end.

    Raises:
        EngineError: what the engine says, or UNAVAILABLE when it is gone.
    """
    try:
        answer = await call.read()
    except (grpc.aio.AioRpcError, EngineError) as failure:
        error = from_rpc_error(failure)
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
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


def _parse(message: type[Message], payload: bytes) -> tuple[SplitRequest | None, str]:
    """The request if it is a generation, and the model that it names."""
    if message is GenerateRequest:
        request = SplitRequest.parse(payload)
        return request, request.head.model
    named: Any = message.FromString(payload)
    return None, named.model


def _malformed(method: str, message: type[Message], error: DecodeError) -> EngineError:
    text = f"the request of {ENGINE_SERVICE}/{method} is no {message.DESCRIPTOR.full_name}: {error}"
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, text)
