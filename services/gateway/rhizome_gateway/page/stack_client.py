"""What the page asks of the stack behind the gateway, beside the hot path: its engines and their caches.

Behind gRPC there is a proxy or a lone engine, which ProxyService tells apart; behind ZeroMQ there are engine
cores. Nothing here is needed to serve requests, so whatever fails is told as "nobody knows".
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from rhizome.engine.v1.engine_service_pb2 import GetCacheTreeRequest, GetCacheTreeResponse
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.proxy.v1.proxy_service_pb2 import Backend, ListBackendsRequest
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub
from rhizome_transport.balanced_client import BalancedClient
from rhizome_transport.channel import open_channel
from rhizome_transport.client import EngineClient
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.tls import ClientTls
from rhizome_transport.tokens import Tokens
from rhizome_transport.zmq_client import ZmqEngineClient

_TIMEOUT_S = 1.5


class StackClient:
    """Asks a proxy or an engine.

    Must be made inside the running loop. Nothing is sent before the first use.

    Args:
        target: as the gateway's own: `host:port`, or `ipc://PATH`.
        client: the gateway's own; used where it speaks ZeroMQ, of which one connection is enough.
        tls: absent for plaintext.
        tokens: what the server wants to be shown, if it does.
    """

    def __init__(
        self,
        target: str,
        client: EngineClient,
        tls: ClientTls | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self._cores: tuple[ZmqEngineClient, ...] = ()
        if isinstance(client, ZmqEngineClient):
            self._cores = (client,)
        elif isinstance(client, BalancedClient):
            self._cores = client.clients
        self._channel = None if self._cores else open_channel(target, tls=tls, tokens=tokens)

    @property
    def tells_tokens(self) -> bool:
        """Whether caches are shown with their tokens: engines tell them over ZeroMQ only."""
        return bool(self._cores)

    async def backends(self) -> list[Backend] | None:
        """The pool of the proxy; None where there is no proxy but an engine.

        Raises:
            EngineError: nobody answers.
        """
        if self._channel is None:
            return None
        stub = ProxyServiceStub(self._channel)
        try:
            return list((await stub.ListBackends(ListBackendsRequest(), timeout=_TIMEOUT_S)).backends)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        if failure.code is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise failure

    async def cache_trees(self, request: GetCacheTreeRequest) -> GetCacheTreeResponse:
        """The prefix caches.

        Raises:
            EngineError: nobody answers, or who does has none to show (UNIMPLEMENTED).
        """
        if self._cores:
            return await self._trees_of_cores(request.SerializeToString())
        assert self._channel is not None
        try:
            return await EngineServiceStub(self._channel).GetCacheTree(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def _trees_of_cores(self, request: bytes) -> GetCacheTreeResponse:
        """Of those that answer; several are told apart by where they listen."""
        told = await asyncio.gather(
            *(core.call("GetCacheTree", request, timeout_s=_TIMEOUT_S) for core in self._cores),
            return_exceptions=True,
        )
        answer = GetCacheTreeResponse()
        for core, one in zip(self._cores, told, strict=True):
            if isinstance(one, BaseException):
                if len(self._cores) == 1 or not isinstance(one, EngineError):
                    raise one
                continue
            for tree in GetCacheTreeResponse.FromString(one[0]).trees:
                if len(self._cores) > 1:
                    tree.engine = core.endpoint
                answer.trees.append(tree)
        return answer

    async def close(self) -> None:
        """Release the connection that is its own."""
        if self._channel is not None:
            await self._channel.close()
