"""The listeners that take frames, messages and requests, and what is thrown at each of them."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections import Counter
from typing import Any, Protocol

import grpc
import zmq
from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from tests.fuzz.frames.messages import broken, messages

from rhizome.engine.v1 import engine_service_pb2, frames_pb2
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome.proxy.v1 import proxy_service_pb2
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION

_PATIENCE_S = 0.3
_WRONG = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
"""What no bytes of a client may cause."""


class Gate(Protocol):
    """A listener.

    Attributes:
        counts: what became of everything that was sent.
        wrong: answers that no server should give, in words.
    """

    counts: Counter[str]
    wrong: list[str]

    def attack(self, data: st.DataObject) -> None:
        """Draw something and send it."""
        ...


def frames(data: st.DataObject, dice: random.Random, *, most: int = 6) -> list[bytes]:
    """A conversation: mostly opened as it should be, then frames of which some are broken."""
    hello = frames_pb2.ClientFrame(
        hello=frames_pb2.Hello(protocol_version=PROTOCOL_VERSION, peer_name="fuzz", initial_credit=4)
    )
    said = [hello.SerializeToString()] if dice.random() < 0.9 else []
    for frame in data.draw(st.lists(messages(frames_pb2.ClientFrame.DESCRIPTOR), min_size=1, max_size=most)):
        _mostly_sensible(frame, dice)
        payload = frame.SerializeToString()
        said.append(broken(payload, dice) if dice.random() < 0.4 else payload)
    return said


def _mostly_sensible(frame: Any, dice: random.Random) -> None:
    """Half of all requests get what the first checks look for, so that the later ones see some, too."""
    if frame.HasField("submit") and dice.random() < 0.5:
        request = frame.submit.request
        request.request_id = request.request_id or f"fuzz-{dice.randrange(10**9)}"
        request.model = ""
        if dice.random() < 0.8:
            request.token_ids.ids.extend(dice.choices(range(1152), k=dice.choice((1, 20, 300))))
            request.stop.max_tokens = min(request.stop.max_tokens or 4, 32)
            del request.stop.strings[:]
            del request.sampling.bad_words[:]
            request.ClearField("echo")


class CoreGate:
    """The engine core's ZeroMQ socket.

    Args:
        endpoint: `ipc:///path`.
    """

    def __init__(self, endpoint: str) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._endpoint = endpoint
        self._context = zmq.Context()

    def attack(self, data: st.DataObject) -> None:
        """One connection, a conversation, and whatever comes back."""
        dice = random.Random(data.draw(st.integers(0, 2**32)))
        with self._context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            peer.connect(self._endpoint)
            for payload in frames(data, dice):
                parts = [payload] if dice.random() < 0.9 else [payload, b"", payload][: dice.choice((2, 3))]
                peer.send_multipart(parts)
                self.counts["frames"] += 1
            give_up_s = time.monotonic() + _PATIENCE_S
            while peer.poll(int(_PATIENCE_S * 100)) and time.monotonic() < give_up_s:
                self._read(peer.recv_multipart())

    def _read(self, parts: list[bytes]) -> None:
        frame = frames_pb2.EngineFrame.FromString(parts[-1])
        for one in (*frame.events, *frame.call_results):
            if one.HasField("status"):
                self.counts["errors"] += 1
                if one.status.code in (code.value[0] for code in _WRONG):
                    self.wrong.append(f"{one.status}"[:300])
            else:
                self.counts["answers"] += 1


class GrpcGate:
    """A gRPC listener of EngineService: frames on Connect, bytes on every other method.

    Args:
        target: `host:port`.
        others: further methods, by their full path, with the type of their request.
    """

    def __init__(self, target: str, others: dict[str, Any] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._channel = grpc.insecure_channel(target)
        service = engine_service_pb2.DESCRIPTOR.services_by_name["EngineService"]
        self._methods = {
            f"/{ENGINE_SERVICE}/{method.name}": method.input_type
            for method in service.methods
            if method.name != "Connect"
        } | {path: kind.DESCRIPTOR for path, kind in (others or {}).items()}

    def attack(self, data: st.DataObject) -> None:
        """A conversation, or a call."""
        dice = random.Random(data.draw(st.integers(0, 2**32)))
        if dice.random() < 0.5:
            path, said = f"/{ENGINE_SERVICE}/Connect", frames(data, dice)
        else:
            path = dice.choice(list(self._methods))
            message = data.draw(messages(self._methods[path]))
            if isinstance(message, GenerateRequest):
                message.stop.max_tokens = min(message.stop.max_tokens or 4, 32)
            payload = message.SerializeToString()
            said = [broken(payload, dice) if dice.random() < 0.4 else payload]
        self.counts["frames"] += len(said)
        call = self._channel.stream_stream(path)(iter(said), timeout=_PATIENCE_S)
        try:
            for answer in call:
                self._read(path, answer)
        except grpc.RpcError as error:
            self.counts[error.code().name] += 1
            if error.code() in _WRONG and not _not_read(error):
                self.wrong.append(f"{path}: {error.code().name} {error.details()}")
        finally:
            call.cancel()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _read(self, path: str, answer: bytes) -> None:
        self.counts["answers"] += 1
        if not path.endswith("/Connect"):
            return
        with contextlib.suppress(DecodeError):
            for event in frames_pb2.EngineFrame.FromString(answer).events:
                if event.status.code in (code.value[0] for code in _WRONG):
                    self.wrong.append(f"{path}: {event.status}"[:300])


def _not_read(error: Any) -> bool:
    """gRPC itself says INTERNAL or UNKNOWN where bytes are no message of the method's type."""
    return "deserializ" in str(error.details()) or "DecodeError" in str(error.details())


class HttpGate:
    """An HTTP listener.

    Args:
        port: on loopback.
    """

    _PARTS = (
        *(b"POST", b"GET", b" ", b"/v1/chat/completions", b"/", b"*", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9"),
        *(b"\r\n", b"\n", b"\r\n\r\n", b"\r", b" \t", b": ", b"\x00", b"\xff\xfe", b"X: " + b"y" * 9000),
        *(b"Host: a", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 5, 5"),
        *(b"Content-Length: 99999999999999999999", b"Connection: close", b"Expect: 100-continue"),
        *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity, chunked", b"Upgrade: h2c"),
        *(b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"fffffffff\r\n", b"5;a=b\r\n"),
        b'{"model": "simulated", "stream": true}',
    )

    def __init__(self, port: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._port = port

    def attack(self, data: st.DataObject) -> None:
        """Parts of requests in any order, or a request with something broken in it, in pieces."""
        dice = random.Random(data.draw(st.integers(0, 2**32)))
        if dice.random() < 0.4:
            said = b"".join(data.draw(st.lists(st.sampled_from(self._PARTS), max_size=14)))
        else:
            body = data.draw(
                st.sampled_from((b'{"model":"simulated","messages":[]}', b"{", b"", b"[]" * 500))
            )
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            said = broken(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), dice)
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=5) as raw,
            contextlib.suppress(OSError),
        ):
            for start in range(0, len(said), 700):
                raw.sendall(said[start : start + 700])
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(_PATIENCE_S * 10)
            self._read(said, b"".join(iter(lambda: raw.recv(65536), b"")))
        self.counts["frames"] += 1

    def _read(self, said: bytes, answer: bytes) -> None:
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "none"
        self.counts[status] += 1
        if answer and status == "none":
            self.wrong.append(f"{said[:200]!r} got {answer[:200]!r}")
        if status == "500":
            self.wrong.append(f"{said[:200]!r} got {answer[:300]!r}")


PROXY_METHODS = {
    "/rhizome.proxy.v1.ProxyService/ListBackends": proxy_service_pb2.ListBackendsRequest,
    "/rhizome.proxy.v1.ProxyService/AddBackend": proxy_service_pb2.AddBackendRequest,
    "/rhizome.proxy.v1.ProxyService/RemoveBackend": proxy_service_pb2.RemoveBackendRequest,
    "/rhizome.proxy.v1.ProxyService/DrainBackend": proxy_service_pb2.DrainBackendRequest,
    "/rhizome.proxy.v1.ProxyService/WatchBackends": proxy_service_pb2.WatchBackendsRequest,
}
