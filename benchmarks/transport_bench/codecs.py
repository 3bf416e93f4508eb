"""Step frames in protobuf and in MessagePack: what it takes to write and to read one.

Both hold the same: a step's number and, for each request that got something, its id, its token ids, and
whether that was the last. MessagePack is measured as the systems before us used it: positional arrays, by
`msgspec` with typed structs, and by `msgpack` with plain lists.

    write      from ids and tokens to bytes
    read       from bytes to tokens, or with `rhizome` to bytes of each event
    dispatch   from bytes to the requests that they belong to

`rhizome` is protobuf as `rhizome_transport` does it: the outbox joins parts that were serialised before, the
session leaves payloads bytes and knows short ones by heart, and both merge and keep account besides.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator

from rhizome.engine.v1.frames_pb2 import EngineFrame, RequestEvent
from rhizome.engine.v1.generate_pb2 import GenerateResponse, TokenDelta
from rhizome.engine.v1.relay_pb2 import PeerFrame
from rhizome_transport.inbox import RequestInbox
from rhizome_transport.outbox import Outbox
from rhizome_transport.session import Session

BATCH = 50
ROUNDS = 60
VOCABULARY = 4096


def best_us(work: Callable[[], object]) -> float:
    """Microseconds per call, in the best of several rounds: disturbance only ever slows."""
    best = float("inf")
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(BATCH):
                work()
            best = min(best, time.perf_counter() - began)
    finally:
        gc.enable()
    return best / BATCH * 1e6


def ours(ids: list[str], tokens: list[int]) -> Iterator[tuple[str, float]]:
    """Write and read in protobuf as Rhizome does: from parts, and leaving payloads bytes."""
    outbox = Outbox(1)

    def write() -> bytes:
        outbox.credit = 1
        for one, token in zip(ids, tokens, strict=True):
            outbox.put_tokens(one, (token,))
        return outbox.take(7) or b""

    payload = write()
    session = Session(None, "bench", 64, lambda load: None)  # type: ignore[arg-type] # no link: nothing is sent
    session.requests = {one: RequestInbox(lambda: None) for one in ids}

    def dispatch() -> None:
        session.dispatch((payload,))
        for inbox in session.requests.values():
            inbox.take()

    yield "bytes", float(len(payload))
    yield "write_us", best_us(write)
    yield "read_us", best_us(lambda: PeerFrame.FromString(payload))
    yield "dispatch_us", best_us(dispatch)


def protobuf(ids: list[str], tokens: list[int]) -> Iterator[tuple[str, float]]:
    """Write and read in protobuf with messages, as anybody would."""

    def write() -> bytes:
        events = [
            RequestEvent(request_id=one, response=GenerateResponse(delta=TokenDelta(token_ids=[token])))
            for one, token in zip(ids, tokens, strict=True)
        ]
        return EngineFrame(step=7, events=events).SerializeToString()

    payload = write()

    requests: dict[str, list[int]] = {one: [] for one in ids}

    def read() -> int:
        return sum(len([*e.response.delta.token_ids]) for e in EngineFrame.FromString(payload).events)

    def dispatch() -> None:
        for event in EngineFrame.FromString(payload).events:
            requests[event.request_id].extend(event.response.delta.token_ids)
        for taken in requests.values():
            taken.clear()

    yield "bytes", float(len(payload))
    yield "write_us", best_us(write)
    yield "read_us", best_us(read)
    yield "dispatch_us", best_us(dispatch)


def with_msgspec(ids: list[str], tokens: list[int]) -> Iterator[tuple[str, float]]:
    """Write and read with msgspec."""
    import msgspec

    event_kind = msgspec.defstruct(
        "Event",
        [("request_id", str), ("token_ids", list[int]), ("final", bool)],
        array_like=True,
        gc=False,
    )
    fields = [("step", int), ("events", list[event_kind])]
    frame_kind = msgspec.defstruct("Frame", fields, array_like=True, gc=False)
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(frame_kind)

    def write() -> bytes:
        events = [event_kind(one, [token], False) for one, token in zip(ids, tokens, strict=True)]
        return encoder.encode(frame_kind(7, events))

    payload = write()
    requests: dict[str, list[int]] = {one: [] for one in ids}

    def read() -> int:
        return sum(len(event.token_ids) for event in decoder.decode(payload).events)

    def dispatch() -> None:
        for event in decoder.decode(payload).events:
            requests[event.request_id].extend(event.token_ids)
        for taken in requests.values():
            taken.clear()

    yield "bytes", float(len(payload))
    yield "write_us", best_us(write)
    yield "read_us", best_us(read)
    yield "dispatch_us", best_us(dispatch)


def with_msgpack(ids: list[str], tokens: list[int]) -> Iterator[tuple[str, float]]:
    """Write and read with msgpack."""
    import msgpack

    def write() -> bytes:
        return msgpack.packb([7, [[one, [token], False] for one, token in zip(ids, tokens, strict=True)]])

    payload = write()
    requests: dict[str, list[int]] = {one: [] for one in ids}

    def read() -> int:
        return sum(len(event[1]) for event in msgpack.unpackb(payload)[1])

    def dispatch() -> None:
        for request_id, token_ids, _ in msgpack.unpackb(payload)[1]:
            requests[request_id].extend(token_ids)
        for taken in requests.values():
            taken.clear()

    yield "bytes", float(len(payload))
    yield "write_us", best_us(write)
    yield "read_us", best_us(read)
    yield "dispatch_us", best_us(dispatch)


CODECS = {"rhizome": ours, "protobuf": protobuf, "msgspec": with_msgspec, "msgpack": with_msgpack}


def compare(events: int) -> dict[str, dict[str, float]]:
    """Figures of every codec that is installed, for frames of so many events."""
    ids = [f"{number:032x}" for number in range(events)]
    tokens = [number * 37 % VOCABULARY for number in range(events)]
    return {
        name: dict(codec(ids, tokens))
        for name, codec in CODECS.items()
        if name in ("rhizome", "protobuf") or importlib.util.find_spec(name)
    }
