"""The floor under a gateway in Python: HTTP written by hand around the same connection to the engine.

It looks at no header but the body's length, checks nothing, renders and tokenises nothing (every prompt is
one token), knows no keys, metrics, traces, deadlines or slow readers, and copies each token into a line that
was encoded before. What it costs in the same minutes is what sockets, the engine's frames and the interpreter
cost on this machine; what a gateway costs beyond it is the gateway's own.

    python benchmarks/gateway_bench/probe.py --port 8000 --engine ipc:///tmp/engine.ipc
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
from typing import cast

import uvloop

from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.client import EngineClient
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.request_stream import RequestStream
from rhizome_transport.zmq_client import ZmqEngineClient

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_BEFORE = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"'
_AFTER = b'"},"logprobs":null,"finish_reason":null}]}\n\n'


class Words(dict[int, bytes]):
    """Texts of tokens as they stand between the quotes of a JSON string."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> bytes:
        text = json.dumps(self._tokenizer.decode([token_id]))[1:-1].encode()
        self[token_id] = text
        return text


class Probe:
    """What all connections share: the engine, and its vocabulary."""

    def __init__(self, client: EngineClient, words: Words) -> None:
        self._client = client
        self._words = words
        self._numbers = itertools.count()

    async def open(self, answer: Answer, fields: dict[str, object]) -> RequestStream:
        """Ask the engine."""
        request = GenerateRequest(request_id=f"probe-{next(self._numbers)}")
        request.token_ids.ids.append(1)
        if fields.get("max_tokens") is not None:
            request.stop.max_tokens = cast(int, fields["max_tokens"])
        return await self._client.open(request, answer.pump)

    def text(self, token_ids: list[int]) -> bytes:
        """The tokens' texts together."""
        words = self._words
        return b"".join([words[token_id] for token_id in token_ids])


class Answer:
    """One answer on its way to the client."""

    __slots__ = ("_pieces", "_probe", "_stream", "_transport", "_whole")

    def __init__(self, probe: Probe, transport: asyncio.Transport, *, whole: bool) -> None:
        self._probe = probe
        self._transport = transport
        self._whole = whole
        self._pieces: list[bytes] = []
        self._stream: RequestStream | None = None

    async def run(self, fields: dict[str, object]) -> None:
        """Ask; the rest happens when tokens arrive."""
        self._stream = await self._probe.open(self, fields)
        if not self._whole:
            self._transport.write(_STREAM_HEAD)
        self.pump()

    def close(self) -> None:
        """The client is gone."""
        if self._stream is not None:
            self._stream.close()

    def pump(self) -> None:
        """Write what has arrived."""
        if (stream := self._stream) is None:
            return
        while (arrived := stream.take()) is not None:
            if isinstance(arrived, GenerateResponse):
                token_ids = list(arrived.delta.token_ids)
                finished = arrived.HasField("finished")
            else:
                token_ids, finished = arrived, False
            if token_ids:
                self._write(self._probe.text(token_ids))
            if finished:
                self._finish()

    def _write(self, text: bytes) -> None:
        if self._whole:
            self._pieces.append(text)
            return
        body = b"%b%b%b" % (_BEFORE, text, _AFTER)
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def _finish(self) -> None:
        if self._whole:
            body = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"%b"}}]}' % b"".join(
                self._pieces
            )
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
        else:
            self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


class Http(asyncio.Protocol):
    """One connection."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._data = b""
        self._answer: Answer | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody reads any more."""
        if self._answer is not None:
            self._answer.close()

    def data_received(self, data: bytes) -> None:
        """Answer whole requests."""
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._data, 0, end + 2)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._data) < whole:
            return
        body, self._data = self._data[end + 4 : whole], self._data[whole:]
        if not body:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        fields: dict[str, object] = json.loads(body)
        self._answer = Answer(self._probe, self._transport, whole=not fields.get("stream"))
        self._task = asyncio.create_task(self._answer.run(fields))


async def serve(port: int, target: str) -> None:
    """Serve for ever."""
    client: ZmqEngineClient | GrpcEngineClient
    if target.startswith("ipc://"):
        client = ZmqEngineClient(target, peer_name="probe")
    else:
        client = GrpcEngineClient(target, peer_name="probe")
    await client.wait_ready(10)
    probe = Probe(client, Words(Tokenizer.from_files((await client.tokenizer_files()).files)))
    server = await asyncio.get_running_loop().create_server(
        lambda: Http(probe), "127.0.0.1", port, backlog=2048
    )
    await server.serve_forever()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="The floor under a gateway.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True, help="host:port, or ipc://")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.engine))


if __name__ == "__main__":
    main()
