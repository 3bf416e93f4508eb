"""The server's side of tokens: nobody without one gets further than the health service."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from rhizome_transport.errors import EngineError
from rhizome_transport.servicer import abort_with
from rhizome_transport.tokens import Tokens

_log = logging.getLogger(__name__)

AUTHORIZATION = "authorization"
_OPEN_PREFIX = "/grpc.health.v1.Health/"
"""Probes of containers and of load balancers carry no secrets."""
_TELL_EVERY_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]


class TokenGuard(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED to every call that shows none of the tokens, reflection included.

    It comes before everything else, so a stranger does not learn which methods exist.

    Args:
        tokens: those that are accepted.

    Attributes:
        refused: calls that showed none.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._tell_at = 0.0
        self.refused = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let the call through, or answer in its place."""
        if handler_call_details.method.startswith(_OPEN_PREFIX):
            return await continuation(handler_call_details)
        shown = [value for key, value in handler_call_details.invocation_metadata if key == AUTHORIZATION]
        if len(shown) == 1 and self._tokens.accept(shown[0]):
            return await continuation(handler_call_details)
        self.refused += 1
        return grpc.stream_stream_rpc_method_handler(self._refuse)  # fits calls of every kind

    async def _refuse(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        now = time.monotonic()
        if now >= self._tell_at:  # a flood must not fill the log
            self._tell_at = now + _TELL_EVERY_S
            _log.warning("%s showed no valid token; %d calls were refused so", context.peer(), self.refused)
        text = "this port wants a token: send 'authorization: Bearer TOKEN' with one of its --token-file"
        await abort_with(context, EngineError(grpc.StatusCode.UNAUTHENTICATED, text))
