"""The frames that a proxy reads or makes itself; events from engines pass by unread.

Frames made here carry step 0: steps count within one engine, and what a proxy says belongs to none.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from rhizome.engine.v1.frames_pb2 import (
    CallResult,
    Cancel,
    ClientFrame,
    Credit,
    EngineFrame,
    Hello,
    Pong,
    RequestEvent,
    Welcome,
)
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, Finished, GenerateResponse
from rhizome.engine.v1.load_pb2 import Load
from rhizome.engine.v1.relay_pb2 import RelayEvent, RelayFrame
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError


def hello(peer_name: str, initial_credit: int) -> bytes:
    """Opens a stream to an engine."""
    message = Hello(protocol_version=PROTOCOL_VERSION, peer_name=peer_name, initial_credit=initial_credit)
    return ClientFrame(hello=message).SerializeToString()


def credit(frames: int) -> bytes:
    """Allows an engine that many more frames with events."""
    return ClientFrame(credit=Credit(frames=frames)).SerializeToString()


def cancel(request: Cancel) -> bytes:
    """Ends a request at its engine."""
    return ClientFrame(cancel=request).SerializeToString()


def welcome(instance_id: str) -> bytes:
    """Answers a peer's Hello."""
    message = Welcome(protocol_version=PROTOCOL_VERSION, instance_id=instance_id)
    return EngineFrame(welcome=message).SerializeToString()


def pong(nonce: int) -> bytes:
    """Answers a peer's Ping."""
    return EngineFrame(pong=Pong(nonce=nonce)).SerializeToString()


def call_failed(call_id: str, error: EngineError) -> bytes:
    """Answers a peer's Call."""
    result = CallResult(call_id=call_id, status=error.to_status(), final=True)
    return EngineFrame(call_results=[result]).SerializeToString()


def request_failed(request_id: str, error: EngineError) -> bytes:
    """Ends a peer's request with an error."""
    event = RequestEvent(request_id=request_id, status=error.to_status(), final=True)
    return EngineFrame(events=[event]).SerializeToString()


def request_cancelled(request_id: str) -> bytes:
    """Ends a request that the peer cancelled, where its engine can no longer say so."""
    finished = GenerateResponse(finished=Finished(reason=FINISH_REASON_CANCELLED))
    event = RequestEvent(request_id=request_id, response=finished, final=True)
    return EngineFrame(events=[event]).SerializeToString()


def request_finished(request_id: str, response: bytes) -> bytes:
    """Ends a request with a serialised GenerateResponse."""
    event = RelayEvent(request_id=request_id, response=response, final=True)
    return RelayFrame(events=[event]).SerializeToString()


def parse_client_frame(payload: bytes) -> ClientFrame:
    """Read a peer's frame.

    Raises:
        EngineError: these bytes are no ClientFrame (INVALID_ARGUMENT).
    """
    try:
        return ClientFrame.FromString(payload)
    except DecodeError as error:
        raise EngineError(
            grpc.StatusCode.INVALID_ARGUMENT, f"a frame is no ClientFrame of rhizome.engine.v1: {error}"
        ) from None


def split_control(payload: bytes) -> tuple[bytes, Load | None]:
    """Take what an engine says to the proxy itself out of its frame; returns the rest, and its load."""
    frame = EngineFrame.FromString(payload)
    load = frame.load if frame.HasField("load") else None
    for field in ("load", "welcome", "pong", "call_results"):
        frame.ClearField(field)
    return frame.SerializeToString(), load
