"""EngineClient over ZeroMQ: on the engine core's host, or with keys from elsewhere."""

from __future__ import annotations

import zmq

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2 import (
    EmbedRequest,
    EmbedResponse,
    GetLoadRequest,
    GetLoadResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
    GetTokenizerResponse,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.client import TokenizerFiles
from rhizome_transport.core_connection import CoreConnection
from rhizome_transport.curve import ClientCurve
from rhizome_transport.endpoint import check_core_target
from rhizome_transport.framed_client import FramedClient
from rhizome_transport.frames import FrameMultiplexer
from rhizome_transport.open_core import open_core
from rhizome_transport.tokenizer_chunks import join_chunks

_TOKENIZER_TIMEOUT_S = 60.0


class ZmqEngineClient(FramedClient):
    """Talks to an engine core; implements `client.EngineClient`.

    Unary methods travel as `Call` frames. Must be made inside the running loop; nothing is sent before the
    first use. `endpoint` is kept as an attribute.

    Args:
        endpoint: `ipc:///path` or `tcp://host:port`, as the core binds it.
        peer_name: who we are, for the core's log.
        initial_credit: frames with events the core may send ahead.
        connect_timeout_s: how long a request waits for a connection.
        curve: keys, which `tcp://` needs.

    Raises:
        ValueError: the endpoint is neither `ipc://` nor `tcp://` with keys.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        peer_name: str,
        initial_credit: int = 64,
        connect_timeout_s: float = 5.0,
        curve: ClientCurve | None = None,
    ) -> None:
        check_core_target(endpoint, curve)
        self.endpoint = endpoint
        self._curve = curve
        self._context = zmq.Context()
        super().__init__(
            FrameMultiplexer(
                self._connect,
                target=endpoint,
                peer_name=peer_name,
                initial_credit=initial_credit,
                connect_timeout_s=connect_timeout_s,
            )
        )

    async def embed(
        self, request: EmbedRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> EmbedResponse:
        """See `client.EngineClient`."""
        payload = request.SerializeToString()
        answers = await self.call("Embed", payload, timeout_s=timeout_s, trace=trace)
        return EmbedResponse.FromString(b"".join(answers))  # parts of one message

    async def call(
        self,
        method: str,
        request: bytes,
        *,
        timeout_s: float | None = 10.0,
        trace: TraceContext | None = None,
    ) -> list[bytes]:
        """Call any method of EngineService or EngineAdminService by name.

        Args:
            method: such as `FlushCache`.
            request: the serialised request message.
            timeout_s: give up after this time.
            trace: the caller's span.

        Returns:
            The serialised answers: one, or several where the method streams.
        """
        return await self.frames.call(method, request, timeout_s=timeout_s, trace=trace)

    async def model_info(self, model: str = "") -> GetModelInfoResponse:
        """See `client.EngineClient`."""
        answers = await self.call("GetModelInfo", GetModelInfoRequest(model=model).SerializeToString())
        return GetModelInfoResponse.FromString(answers[0])

    async def tokenizer_files(self, model: str = "") -> TokenizerFiles:
        """See `client.EngineClient`."""
        request = GetTokenizerRequest(model=model).SerializeToString()
        answers = await self.call("GetTokenizer", request, timeout_s=_TOKENIZER_TIMEOUT_S)
        return join_chunks(GetTokenizerResponse.FromString(answer) for answer in answers)

    async def load(self) -> Load:
        """See `client.EngineClient`."""
        answers = await self.call("GetLoad", GetLoadRequest().SerializeToString())
        return GetLoadResponse.FromString(answers[0]).load

    async def wait_ready(self, timeout_s: float) -> None:
        """See `client.EngineClient`. A core answers only once its model is loaded."""
        await self.frames.connection(timeout_s, limit_s=timeout_s)

    async def _connect(self) -> CoreConnection:
        return open_core(self._context, self.endpoint, curve=self._curve)

    async def close(self) -> None:
        """See `client.EngineClient`."""
        await self.frames.close()
        # Not `term`, which would block the loop for as long as any socket is open.
        self._context.destroy(linger=0)
