"""Our end of a call, against h2's server and against bytes that no server should send."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable, Iterator

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from rhizome_transport import http2_call
from rhizome_transport.errors import EngineError
from rhizome_transport.http2_call import Http2Call

PATH = "/rhizome.engine.v1.EngineService/Connect"
OK_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
SETTINGS = 4

splits = st.lists(st.integers(1, 400), max_size=12)
sizes = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 70_000)), max_size=5)


def new_call(**options: object) -> Http2Call:
    return Http2Call(PATH, "engine:50051", tls=False, metadata=[("authorization", "Bearer x")], **options)


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def headers(fields: Iterable[tuple[str, str]], flags: int = 0x4) -> bytes:
    return frame(1, flags, 1, hpack.Encoder().encode(list(fields)))


def packed(*messages: bytes) -> bytes:
    return b"".join(b"\0" + len(one).to_bytes(4, "big") + one for one in messages)


def cut(data: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    for length in lengths:
        yield data[:length]
        data = data[length:]
    yield data


class Server:
    """h2's view of the other end: it raises where we break a rule."""

    def __init__(self, window: int = 65_535, frame_bytes: int = 16_384) -> None:
        self.wire = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        codes = h2.settings.SettingCodes
        self.wire.local_settings = h2.settings.Settings(
            client=False,
            initial_values={codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame_bytes},
        )
        self.wire.initiate_connection()
        self.headers: dict[str, str] = {}
        self.received = b""
        self.end: object = None

    def read(self, data: bytes) -> None:
        for event in self.wire.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    self.headers = {name.decode(): value.decode() for name, value in event.headers}
                    self.wire.send_headers(1, OK_HEADERS)
                case h2.events.DataReceived():
                    self.received += event.data
                    if event.flow_controlled_length:
                        self.wire.acknowledge_received_data(event.flow_controlled_length, 1)
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    self.end = self.end or event

    def say(self, data: bytes) -> bytes:
        """As much of it as the client lets the server send; returns the rest."""
        room = min(self.wire.local_flow_control_window(1), self.wire.max_outbound_frame_size, len(data))
        if room:
            self.wire.send_data(1, data[:room])
        return data[room:]


@given(ours=sizes, theirs=sizes, lengths=splits, window=st.integers(300, 100_000))
def test_messages_of_all_sizes_cross_both_ways_however_they_are_cut(ours, theirs, lengths, window):
    call, server = new_call(), Server(window)
    server.read(call.begin())
    sent = [bytes([number]) * size for number, size in enumerate(ours)]
    unsent = b"".join(map(Http2Call.packed, sent))
    answers = [bytes([number]) * size for number, size in enumerate(theirs)]
    unsaid = packed(*answers)
    arrived: list[bytes] = []
    idle = 0
    while idle < 2:
        data = server.wire.data_to_send()
        for piece in cut(data, lengths):
            server.read(call.receive(piece, arrived))
        frames, size = call.data_frames(memoryview(unsent))
        server.read(frames)
        unsent, before = unsent[size:], unsaid
        unsaid = server.say(unsaid)
        idle = 0 if data or size or unsaid != before else idle + 1
    assert not unsent and not unsaid and call.outcome is None
    assert server.received == packed(*sent) and arrived == answers


def test_the_server_learns_what_is_called_and_by_whom():
    call, server = new_call(), Server()
    server.read(call.begin())
    assert server.headers == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "engine:50051",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "grpc-rhizome",
        "authorization": "Bearer x",
    }
    assert server.wire.local_flow_control_window(1) == 4 << 20
    server.read(call.cancel())
    assert isinstance(server.end, h2.events.StreamReset) and server.end.error_code == 8


def test_headers_that_fill_several_frames_arrive():
    call = Http2Call(PATH, "engine", tls=True, metadata=[("authorization", "Bearer " + "~\x7f" * 15_000)])
    server = Server()
    server.read(call.begin())
    assert len(server.headers["authorization"]) == 30_007 and server.headers[":scheme"] == "https"


def test_a_window_that_shrinks_below_nothing_is_waited_for():
    call = begun()
    assert call.data_frames(bytes(60_000))[1] == 60_000
    call.receive(frame(SETTINGS, 0, 0, struct.pack("!HL", 4, 1_000)), [])
    assert call.data_frames(b"x") == (b"", 0)
    call.receive(frame(8, 0, 1, struct.pack("!L", 59_001)), [])
    assert call.data_frames(b"xy")[1] == 1
    call.receive(frame(8, 0, 1, struct.pack("!L", 100_000)) + frame(8, 0, 0, struct.pack("!L", 7)), [])
    assert call.data_frames(bytes(100_000))[1] == 65_535 + 7 - 60_001


def test_frames_are_as_long_as_the_server_takes():
    call = begun()
    assert [size for size, _ in frames_in(call.data_frames(bytes(40_000))[0])] == [16_384, 16_384, 7_232]
    call.receive(frame(SETTINGS, 0, 0, struct.pack("!HL", 5, 20_000)), [])
    assert [size for size, _ in frames_in(call.data_frames(bytes(25_000))[0])] == [20_000, 5_000]


def frames_in(data: bytes) -> list[tuple[int, int]]:
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((size, data[3]))
        data = data[9 + size :]
    return found


def begun(answered: bool = True) -> Http2Call:
    call = new_call()
    call.begin()
    assert call.receive(frame(SETTINGS, 0, 0), []) == frame(SETTINGS, 1, 0)
    if answered:
        call.receive(headers(OK_HEADERS), [])
    assert call.outcome is None
    return call


def test_the_server_may_send_on_as_long_as_what_it_sent_is_read():
    call, arrived = begun(), []
    size = 16_384
    data = frame(0, 0, 1, packed(bytes(size - 5)))
    replies = [call.receive(data, arrived) for _ in range(256)]
    assert [replies.index(reply) for reply in replies if reply] == [127, 127]
    assert replies[127] == b"".join(frame(8, 0, stream, struct.pack("!L", 2 << 20)) for stream in (0, 1))
    assert len(arrived) == 256


@given(lengths=splits)
def test_what_else_http2_has_is_obeyed_or_ignored(lengths):
    call, arrived = begun(answered=False), []
    block = hpack.Encoder().encode(OK_HEADERS)
    data = b"".join(
        (
            headers([(":status", "103"), ("link", "x")]),
            frame(6, 0, 0, b"01234567"),
            frame(1, 0x8 | 0x20, 1, b"\3" + bytes(5) + block[:2] + bytes(3)),
            frame(9, 0, 1, block[2:4]),
            frame(9, 0x4, 1, block[4:]),
            frame(2, 0, 1, bytes(5)),
            frame(99, 0xFF, 1, b"whatever"),
            frame(3, 0, 7, bytes(4)),
            frame(0, 0x8, 1, b"\4" + packed(b"one", b"")[:5] + bytes(4)),
            frame(0, 0, 1, b""),
            frame(0, 0, 1, packed(b"one", b"")[5:] + packed(b"two")),
            frame(6, 1, 0, bytes(8)),
            frame(SETTINGS, 1, 0),
        )
    )
    replies = b"".join(call.receive(piece, arrived) for piece in cut(data, lengths))
    assert arrived == [b"one", b"", b"two"] and call.outcome is None
    assert replies == frame(6, 1, 0, b"01234567")


NO_PAGES = EngineError(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "no pages left", reason="QUEUE_FULL", retry_after_s=2.0
)
DETAILS = base64.b64encode(NO_PAGES.to_rpc_status().SerializeToString()).decode().rstrip("=")

UNREADABLE = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
GARBAGE = base64.b64encode(Status(code=8, message="x", details=[UNREADABLE]).SerializeToString()).decode()


@pytest.mark.parametrize(
    ("trailers", "code", "message", "reason"),
    [
        ([("grpc-status", "0")], "UNAVAILABLE", "the engine ended the stream", ""),
        ([("grpc-status", "16"), ("grpc-message", "show a %E2%82%AC")], "UNAUTHENTICATED", "show a €", ""),
        ([("grpc-status", "8"), ("grpc-status-details-bin", DETAILS)], *(
            "RESOURCE_EXHAUSTED", "no pages left", "QUEUE_FULL")),
        ([("grpc-status", "8"), ("grpc-status-details-bin", "!")], *(
            "RESOURCE_EXHAUSTED", "the engine ended the stream", "")),
        ([("grpc-status", "99"), ("grpc-message", "%")], "UNKNOWN", "%", ""),
        ([("grpc-status", "8"), ("grpc-status-details-bin", GARBAGE)], *(
            "RESOURCE_EXHAUSTED", "the engine ended the stream", "")),
        ([("grpc-status", "9" * 5_000)], "UNKNOWN", "the engine ended the stream", ""),
        ([("grpc-status", "x")], "UNKNOWN", "the engine ended the stream", ""),
        ([("other", "x")], "UNKNOWN", "the engine ended the stream", ""),
    ],
)  # fmt: skip
def test_the_status_is_what_the_trailers_say(trailers, code, message, reason):
    alone, after = begun(answered=False), begun()
    alone.receive(headers([*OK_HEADERS, *trailers], flags=0x5), [])
    arrived: list[bytes] = []
    after.receive(frame(0, 0, 1, packed(b"last")) + headers(trailers, flags=0x5), arrived)
    assert arrived == [b"last"]
    for call in (alone, after):
        assert call.outcome is not None
        assert (call.outcome.code.name, call.outcome.message, call.outcome.reason) == (code, message, reason)
        assert call.receive(frame(6, 0, 0, bytes(8)), arrived) == b""


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (headers([(":status", "502"), ("content-type", "text/html")]), "UNAVAILABLE", "HTTP status 502"),
        (headers([(":status", "4" * 5_000)]), "UNKNOWN", "HTTP status 444"),
        (headers([(":status", "401")]), "UNAUTHENTICATED", "HTTP status 401"),
        (headers([(":status", "200"), ("content-type", "text/html")]), "UNKNOWN", "does not speak gRPC"),
        (headers([("grpc", "no")]), "UNKNOWN", "HTTP status absent"),
        (frame(3, 0, 1, struct.pack("!L", 7)), "UNAVAILABLE", "HTTP/2 error 7"),
        (frame(3, 0, 1, struct.pack("!L", 8)), "CANCELLED", "HTTP/2 error 8"),
        (frame(3, 0, 1, struct.pack("!L", 2)), "INTERNAL", "HTTP/2 error 2"),
        (frame(7, 0, 0, struct.pack("!LL", 0, 11) + b"too many pings"), "UNAVAILABLE", "going away"),
        (headers(OK_HEADERS) + frame(0, 1, 1, packed(b"x")), "UNAVAILABLE", "without a status"),
        (headers(OK_HEADERS) + frame(0, 0, 1, b"\0" + (1 << 27).to_bytes(4, "big")), *(
            "RESOURCE_EXHAUSTED", "134217728 bytes")),
    ],
)  # fmt: skip
def test_an_end_without_trailers_has_a_status_too(data: bytes, code: str, said: str):
    call = begun(answered=False)
    call.receive(data, [])
    assert call.outcome is not None and call.outcome.code.name == code and said in call.outcome.message


def test_who_says_farewell_may_finish():
    call, arrived = begun(), []
    call.receive(frame(7, 0, 0, struct.pack("!LL", 2**31 - 1, 0)) + frame(0, 0, 1, packed(b"x")), arrived)
    call.receive(frame(7, 0, 0, struct.pack("!LL", 1, 0)) + frame(0, 0, 1, packed(b"y")), arrived)
    assert arrived == [b"x", b"y"] and call.outcome is None


VIOLATIONS = {
    "another protocol": lambda: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no settings first": lambda: headers(OK_HEADERS),
    "cut settings": lambda: frame(SETTINGS, 0, 0, bytes(5)),
    "a window for ever": lambda: frame(SETTINGS, 0, 0, struct.pack("!HL", 4, 2**31)),
    "tiny frames": lambda: frame(SETTINGS, 0, 0, struct.pack("!HL", 5, 16_383)),
    "a long frame": lambda: settled((16_385).to_bytes(3, "big") + bytes(6)),
    "a window that bursts": lambda: settled(frame(8, 0, 1, struct.pack("!L", 2**31 - 1))),
    "a window of nothing": lambda: settled(frame(8, 0, 0, bytes(4))),
    "a cut window": lambda: settled(frame(8, 0, 0, bytes(3))),
    "a cut ping": lambda: settled(frame(6, 0, 0, bytes(7))),
    "a cut reset": lambda: settled(frame(3, 0, 1, bytes(3))),
    "a cut farewell": lambda: settled(frame(7, 0, 0, bytes(7))),
    "a push": lambda: settled(frame(5, 4, 1, bytes(4))),
    "data too early": lambda: settled(frame(0, 0, 1, packed(b"x"))),
    "data of another stream": lambda: settled(headers(OK_HEADERS), frame(0, 0, 3, packed(b"x"))),
    "all padding": lambda: settled(headers(OK_HEADERS), frame(0, 8, 1, b"\5xxx")),
    "no padding length": lambda: settled(headers(OK_HEADERS), frame(0, 8, 1)),
    "compressed": lambda: settled(headers(OK_HEADERS), frame(0, 0, 1, b"\1\0\0\0\1x")),
    "headers of another stream": lambda: settled(frame(1, 4, 3, b"")),
    "a continuation of nothing": lambda: settled(frame(9, 4, 1, b"")),
    "an interrupted block": lambda: settled(frame(1, 0, 1, b""), frame(6, 0, 0, bytes(8))),
    "endless headers": lambda: settled(frame(1, 0, 1, b""), *[frame(9, 0, 1, bytes(16_384))] * 5),
    "no HPACK": lambda: settled(frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff")),
}


def settled(*frames: bytes) -> bytes:
    return frame(SETTINGS, 0, 0) + b"".join(frames)


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_who_breaks_the_rules_does_not_speak_grpc(violation: str):
    call = new_call()
    call.begin()
    make: Callable[[], bytes] = VIOLATIONS[violation]
    call.receive(make(), [])
    assert call.outcome is not None and call.outcome.code is grpc.StatusCode.UNAVAILABLE
    assert "does not speak gRPC" in call.outcome.message


kinds = st.one_of(st.integers(0, 10), st.integers(0, 255))
noise = st.builds(frame, kinds, st.integers(0, 255), st.integers(0, 3), st.binary(max_size=40))


@given(data=st.one_of(st.lists(noise).map(b"".join), st.binary()), lengths=splits, answered=st.booleans())
def test_whatever_arrives_nothing_is_raised(data, lengths, answered):
    call = begun(answered)
    for piece in cut(data, lengths):
        call.receive(piece, [])


def test_a_message_as_long_as_allowed_arrives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http2_call, "MAX_MESSAGE_BYTES", 100)
    call, arrived = begun(), []
    call.receive(frame(0, 0, 1, packed(bytes(100))), arrived)
    assert arrived == [bytes(100)]
    call.receive(frame(0, 0, 1, packed(bytes(101))), arrived)
    assert call.outcome is not None and call.outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(arrived) == 1
