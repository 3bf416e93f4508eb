"""What a gateway is compared with: the plainest relay that FastAPI makes easy.

One gRPC `Generate` stream per request, one message, one `json.dumps` and one write per token, through a
`StreamingResponse`. It renders, tokenises and detokenises with the same library as the gateway does.

    python benchmarks/gateway_bench/relay.py --port 8000 --engine 127.0.0.1:50051
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.channel import open_channel
from rhizome_transport.grpc_client import GrpcEngineClient


class Message(BaseModel):
    """One turn."""

    role: str
    content: str


class ChatRequest(BaseModel):
    """As much of a chat completion as a plain relay reads."""

    model: str
    messages: list[Message]
    stream: bool = False
    max_tokens: int | None = None


class Relay:
    """An engine and its tokenizer; must be made inside the running loop."""

    def __init__(self, target: str) -> None:
        from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub

        self._client = GrpcEngineClient(target, peer_name="relay")
        self._stub = EngineServiceStub(open_channel(target))
        self._tokenizer: Tokenizer | None = None

    async def tokenizer(self) -> Tokenizer:
        """Fetch it once."""
        if self._tokenizer is None:
            await self._client.wait_ready(10)
            self._tokenizer = Tokenizer.from_files((await self._client.tokenizer_files()).files)
        return self._tokenizer

    async def answer(self, request: ChatRequest) -> AsyncIterator[tuple[str, GenerateResponse]]:
        """The engine's messages, each with the text that it completed."""
        tokenizer = await self.tokenizer()
        template = tokenizer.chat_template()
        assert template is not None
        messages = [message.model_dump() for message in request.messages]
        prompt = template.render(messages, tools=None, add_generation_prompt=True)
        asked = GenerateRequest(request_id=uuid.uuid4().hex)
        asked.token_ids.ids.extend(tokenizer.encode(prompt))
        if request.max_tokens is not None:
            asked.stop.max_tokens = request.max_tokens
        text = TextStream(tokenizer)
        async for message in self._stub.Generate(asked):
            yield text.push(message.delta.token_ids).text, message


def chunk(completion_id: str, model: str, delta: dict[str, str], finish_reason: str | None = None) -> str:
    """One server-sent event."""
    fields: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
    }
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def application(target: str) -> FastAPI:
    """The relay's routes."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.relay = Relay(target)
        await app.state.relay.tokenizer()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Response:
        relay: Relay = app.state.relay
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        if request.stream:

            async def stream() -> AsyncIterator[str]:
                yield chunk(completion_id, request.model, {"role": "assistant", "content": ""})
                async for text, message in relay.answer(request):
                    if text:
                        yield chunk(completion_id, request.model, {"content": text})
                    elif message.HasField("finished"):
                        yield chunk(completion_id, request.model, {}, "stop")
                yield "data: [DONE]\n\n"

            return StreamingResponse(stream(), media_type="text/event-stream")
        texts, tokens = [], 0
        async for text, message in relay.answer(request):
            texts.append(text)
            tokens = message.finished.usage.completion_tokens
        content = {
            "id": completion_id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "".join(texts)}}],
            "usage": {"completion_tokens": tokens},
        }
        return JSONResponse(content)

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A plain relay to compare the gateway with.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True, help="host:port")
    arguments = parser.parse_args()
    uvicorn.run(application(arguments.engine), port=arguments.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
