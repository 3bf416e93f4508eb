"""RelayFrame is EngineFrame with the payloads left as bytes: what a proxy reads and writes loses nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rhizome.common.v1.common_pb2 import Status, Usage
from rhizome.engine.v1.frames_pb2 import CallResult, EngineFrame, Pong, RequestEvent, Welcome
from rhizome.engine.v1.generate_pb2 import (
    Finished,
    FinishReason,
    GenerateResponse,
    RankedToken,
    Started,
    TokenDelta,
    TokenLogprob,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome.engine.v1.relay_pb2 import RelayFrame

uint32 = st.integers(0, 2**32 - 1)
floats = st.floats(width=32, allow_nan=False)
logprobs = st.builds(
    TokenLogprob,
    logprob=floats,
    top=st.lists(st.builds(RankedToken, token_id=uint32, logprob=floats), max_size=3),
)
deltas = st.builds(
    TokenDelta,
    token_ids=st.lists(uint32, max_size=8),
    text=st.text(max_size=8),
    logprobs=st.lists(logprobs, max_size=3),
)
finished = st.builds(
    Finished,
    reason=st.sampled_from(FinishReason.values()),
    stop_string=st.text(max_size=5),
    usage=st.builds(Usage, prompt_tokens=uint32, completion_tokens=uint32),
)
responses = st.one_of(
    st.builds(GenerateResponse, started=st.builds(Started, prompt_tokens=uint32, cached_tokens=uint32)),
    st.builds(GenerateResponse, delta=deltas),
    st.builds(GenerateResponse, finished=finished),
)
statuses = st.builds(Status, code=st.integers(0, 16), message=st.text(max_size=20))
events = st.one_of(
    st.builds(RequestEvent, request_id=st.text(max_size=12), response=responses, final=st.booleans()),
    st.builds(RequestEvent, request_id=st.text(max_size=12), status=statuses, final=st.booleans()),
)
frames = st.builds(
    EngineFrame,
    step=st.integers(0, 2**64 - 1),
    events=st.lists(events, max_size=6),
    load=st.none() | st.builds(Load, instance_id=st.text(max_size=5), running_requests=uint32),
    welcome=st.none() | st.builds(Welcome, protocol_version=uint32, instance_id=st.text(max_size=5)),
    pong=st.none() | st.builds(Pong, nonce=st.integers(0, 2**64 - 1)),
    call_results=st.lists(
        st.builds(CallResult, call_id=st.text(max_size=5), response=st.binary()), max_size=2
    ),
)


@given(frames)
def test_a_relay_finds_each_request_and_its_untouched_payload(frame: EngineFrame) -> None:
    relay = RelayFrame.FromString(frame.SerializeToString())
    assert relay.step == frame.step
    assert len(relay.events) == len(frame.events)
    for seen, sent in zip(relay.events, frame.events, strict=True):
        assert seen.request_id == sent.request_id
        assert seen.final == sent.final
        assert seen.WhichOneof("outcome") == sent.WhichOneof("outcome")
        if sent.WhichOneof("outcome") == "response":
            assert GenerateResponse.FromString(seen.response) == sent.response
        else:
            assert seen.status == sent.status


@given(frames)
def test_what_a_relay_writes_is_the_frame_it_read(frame: EngineFrame) -> None:
    relay = RelayFrame.FromString(frame.SerializeToString())
    assert EngineFrame.FromString(relay.SerializeToString()) == frame


def test_a_status_in_a_frame_has_the_wire_form_of_a_grpc_status() -> None:
    from google.rpc import status_pb2
    from grpc import StatusCode

    from rhizome_transport.errors import EngineError

    error = EngineError(
        StatusCode.RESOURCE_EXHAUSTED, "queue is full", reason="QUEUE_FULL", param="model", retry_after_s=1.5
    )
    status = status_pb2.Status.FromString(error.to_status().SerializeToString())
    assert status == error.to_rpc_status()
    again = EngineError.from_status(status)
    assert (again.code, again.reason, again.param, again.retry_after_s) == (
        error.code,
        "QUEUE_FULL",
        "model",
        1.5,
    )
