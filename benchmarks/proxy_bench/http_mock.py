"""An HTTP server that answers at once, or ticks, and costs next to nothing: what proxies are put before.

    python http_mock.py      prints its port, then serves until it is killed

Whole answers are one write; every stream gets 50 events per second, all together; a stream of the
user `idle` gets one event and then nothing. Its routes for models, health and metrics are those of vLLM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import ClassVar

import uvloop

MODEL = "simulated"
EVENTS_PER_S = 50
EVENT = (
    b"data: "
    + b'{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" x"}}]}'.ljust(192)
    + b"\n\n"
)
ANSWER_TAIL = b'"usage":{"prompt_tokens":500,"completion_tokens":100,"total_tokens":600}}'
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"simulated","choices":[{"index":0,'
    b'"finish_reason":"stop","message":{"role":"assistant","content":"%b"}}],' % (b"x" * 380) + ANSWER_TAIL
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm"}]}
_METRICS = b'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_waiting{engine="0"} 0\n'
_PAGES = {
    b"/v1/models": json.dumps(_MODELS).encode(),
    b"/metrics": _METRICS,
    b"/version": b'{"version":"0.29.0"}',
}


def _whole(body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nServer: uvicorn\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


class _Mock(asyncio.Protocol):
    streams: ClassVar[set[asyncio.Transport]] = set()
    answer = _whole(_ANSWER)
    chunk = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data.startswith(b"POST"):
            if not self.data.endswith(b"}"):  # a request's JSON is its end
                return
            fields = self.data.replace(b'": ', b'":')  # some proxies write the JSON anew
            if b'"stream":true' in fields:
                self.transport.write(_STREAM_HEAD + self.chunk)  # type: ignore[attr-defined]
                if b'"user":"idle"' not in fields:
                    self.streams.add(self.transport)  # type: ignore[arg-type]
            else:
                self.transport.write(self.answer)  # type: ignore[attr-defined]
        elif self.data.endswith(b"\r\n\r\n"):
            path = self.data.split(b" ", 2)[1]
            known = path in _PAGES or path in (b"/health", b"/ping")
            kind = b"text/plain" if path == b"/metrics" else b"application/json"
            status = b"200 OK" if known else b"404 Not Found"
            self.transport.write(_whole(_PAGES.get(path, b"{}"), kind, status))  # type: ignore[attr-defined]
        else:
            return
        self.data = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.discard(self.transport)  # type: ignore[arg-type]


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Mock, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        await asyncio.sleep(1 / EVENTS_PER_S)
        for transport in tuple(_Mock.streams):
            transport.write(_Mock.chunk)


if __name__ == "__main__":
    sys.exit(uvloop.run(_serve()))
