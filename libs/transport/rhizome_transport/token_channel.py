"""The client's side of tokens: a channel whose calls all carry one.

gRPC's own way, call credentials, refuses plaintext channels; its interceptors give back calls of other types,
which lack methods. So the token is added where a call is begun, and the call stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from rhizome_transport.tokens import Tokens

_AUTHORIZATION = "authorization"


class TokenChannel(grpc.aio.Channel):
    """Another channel, with a token.

    Args:
        channel: carries the calls; closed with this one.
        tokens: the first of them is shown.
    """

    def __init__(self, channel: grpc.aio.Channel, tokens: Tokens) -> None:
        self._channel = channel
        self._shown = (_AUTHORIZATION, tokens.authorization)

    async def __aenter__(self) -> TokenChannel:
        """See `grpc.aio.Channel`."""
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """See `grpc.aio.Channel`."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.channel_ready()

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._with_token(self._channel.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._with_token(self._channel.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._with_token(self._channel.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._with_token(self._channel.stream_stream(*method, **options))

    def _with_token(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, metadata: Any = None, **options: Any) -> Any:
            return begin(*arguments, metadata=(*(metadata or ()), self._shown), **options)

        return call
