"""What a gateway, a proxy or a front needs from an engine, whatever carries it.

`grpc_client.GrpcEngineClient` and `zmq_client.ZmqEngineClient` implement this one interface; both speak the
frames of `rhizome/engine/v1/frames.proto`, so that all requests of a peer share one stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2 import EmbedRequest, EmbedResponse, GetModelInfoResponse
from rhizome.engine.v1.generate_pb2 import GenerateResponse
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.request_stream import RequestStream
from rhizome_transport.split_request import AnyRequest


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files that turn text into token ids and back.

    Attributes:
        files: content by name (`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`,
            `generation_config.json`; those that the checkpoint has).
        sha256: hash of all of them, as `GetTokenizer` defines it.
    """

    files: Mapping[str, bytes]
    sha256: str


class EngineClient(Protocol):
    """An engine, or a proxy that stands for several.

    Every method raises `rhizome_transport.errors.EngineError` when the engine cannot or will not answer.
    """

    async def open(
        self,
        request: AnyRequest,
        on_arrival: Callable[[], None],
        *,
        timeout_s: float | None = None,
        trace: TraceContext | None = None,
    ) -> RequestStream:
        """Start one request, whose events wait in the stream that is returned.

        This is the fast way: nothing is awaited for an event. `on_arrival` is called whenever there is one to
        take, at the earliest once this has returned. Deltas that were not taken yet are one delta. The caller
        closes the stream.
        """
        ...

    def generate(
        self, request: AnyRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Run one request and yield its events: `started`, `prompt_logprobs`, `delta`s, `finished`.

        Closing the generator (`aclose`, or cancelling the task that reads it) before `finished` cancels the
        request in the engine. An empty `request_id` is filled in. Token deltas of a slow reader arrive
        merged.
        """
        ...

    async def cancel(self, request_id: str, *, satisfied: bool = False) -> None:
        """End a request but keep reading it.

        A `finished` event with usage and timings follows on its generator. Its reason is CANCELLED, or STOP
        for a caller that is `satisfied`: it has found its stop string. Unknown ids are ignored.
        """
        ...

    async def embed(
        self, request: EmbedRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> EmbedResponse:
        """Turn inputs into vectors; cancelling the task that waits gives them up in the engine."""
        ...

    async def model_info(self, model: str = "") -> GetModelInfoResponse:
        """Describe what is served; an empty name means the only model."""
        ...

    async def tokenizer_files(self, model: str = "") -> TokenizerFiles:
        """Fetch the tokenizer and check its hash."""
        ...

    async def load(self) -> Load:
        """Say how busy the engine is."""
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once the engine serves a model; EngineError(UNAVAILABLE) when it does not in time."""
        ...

    async def close(self) -> None:
        """Cancel what is open and release the connection."""
        ...
