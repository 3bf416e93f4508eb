"""Merging on the sending side, for any sequence of events, steps and credit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.frames_pb2 import EngineFrame, RequestEvent
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_STOP,
    GenerateResponse,
    PromptLogprobs,
    RankedToken,
    TokenDelta,
    TokenLogprob,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.errors import EngineError
from rhizome_transport.outbox import Outbox

IDS = ("a", "b", "c")


def taken(outbox: Outbox, step: int, load: Load | None = None) -> EngineFrame | None:
    payload = outbox.take(step, load)
    return None if payload is None else EngineFrame.FromString(payload)


def event(request_id: str, response: GenerateResponse, final: bool = False) -> RequestEvent:
    return RequestEvent(request_id=request_id, response=response, final=final)


def started(request_id: str) -> RequestEvent:
    response = GenerateResponse()
    response.started.prompt_tokens = 1
    return event(request_id, response)


def delta(request_id: str, token_id: int) -> RequestEvent:
    logprob = TokenLogprob(logprob=-float(token_id), top=[RankedToken(token_id=token_id)])
    return event(
        request_id,
        GenerateResponse(delta=TokenDelta(token_ids=[token_id], text=f"<{token_id}>", logprobs=[logprob])),
    )


def prompt_logprobs(request_id: str, *values: float) -> RequestEvent:
    pieces = [TokenLogprob(logprob=value) for value in values]
    return event(request_id, GenerateResponse(prompt_logprobs=PromptLogprobs(logprobs=pieces)))


def finished(request_id: str) -> RequestEvent:
    response = GenerateResponse()
    response.finished.reason = FINISH_REASON_STOP
    return event(request_id, response, final=True)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("token"), st.sampled_from(IDS)),
        st.tuples(st.just("flush"), st.just("")),
        st.tuples(st.just("credit"), st.just("")),
    ),
    max_size=60,
)


@given(actions=actions, credit=st.integers(1, 3))
def test_whatever_the_credit_every_token_arrives_once_and_in_order(actions, credit):
    outbox = Outbox(credit)
    sent: dict[str, list[int]] = {request_id: [] for request_id in IDS}
    received: dict[str, list[RequestEvent]] = {request_id: [] for request_id in IDS}
    frames_with_events, granted, step = 0, credit, 0

    def flush() -> None:
        nonlocal frames_with_events, step
        step += 1
        frame = taken(outbox, step)
        if frame is not None and frame.events:
            frames_with_events += 1
            for one in frame.events:
                received[one.request_id].append(one)

    for request_id in IDS:
        outbox.put(started(request_id))
    for action, request_id in actions:
        if action == "token":
            sent[request_id].append(len(sent[request_id]))
            outbox.put(delta(request_id, sent[request_id][-1]))
        elif action == "credit":
            outbox.credit += 1
            granted += 1
        else:
            flush()
        assert frames_with_events <= granted
        assert outbox.waiting_events <= 2 * len(IDS)
    for request_id in IDS:
        outbox.put(finished(request_id))
    outbox.credit += 1
    flush()

    for request_id in IDS:
        events = received[request_id]
        order = [one.response.WhichOneof("event") for one in events]
        assert order[0] == "started"
        assert order[-1] == "finished"
        assert order.count("delta") == len(order) - 2
        deltas = [one.response.delta for one in events]
        assert [token for one in deltas for token in one.token_ids] == sent[request_id]
        assert "".join(one.text for one in deltas) == "".join(f"<{token}>" for token in sent[request_id])
        assert [-one.logprob for each in deltas for one in each.logprobs] == sent[request_id]
        assert events[-1].final


def test_nothing_to_send_is_no_frame_and_costs_nothing():
    outbox = Outbox(1)
    assert taken(outbox, 1) is None
    assert outbox.credit == 1


def test_a_failure_is_not_merged_into_what_came_before():
    outbox = Outbox(1)
    outbox.put(delta("a", 1))
    failure = EngineError.from_status(status=_status())
    outbox.put(RequestEvent(request_id="a", status=failure.to_status(), final=True))
    frame = taken(outbox, 1)
    assert frame is not None
    assert [one.WhichOneof("outcome") for one in frame.events] == ["response", "status"]


def test_discarding_forgets_one_request_only():
    outbox = Outbox(1)
    outbox.put(delta("a", 1))
    outbox.put(delta("b", 1))
    outbox.discard("a")
    outbox.put(delta("b", 2))
    frame = taken(outbox, 1)
    assert frame is not None
    assert [(one.request_id, list(one.response.delta.token_ids)) for one in frame.events] == [("b", [1, 2])]


def test_a_load_report_goes_out_without_events():
    frame = taken(Outbox(1), 3, Load(sequence=1))
    assert frame is not None
    assert (frame.step, frame.load.sequence) == (3, 1)


def _status():
    import grpc

    return EngineError(grpc.StatusCode.INTERNAL, "broken").to_status()


def test_pieces_of_a_prompts_log_probabilities_merge_in_order_and_not_with_tokens():
    outbox = Outbox(credit=1)
    for one in (
        started("a"),
        prompt_logprobs("a", -1.0),
        prompt_logprobs("b", -9.0),
        prompt_logprobs("a", -2.0, -3.0),
        delta("a", 5),
    ):
        outbox.put(one)
    frame = taken(outbox, step=1)
    assert frame is not None
    mine = [one.response for one in frame.events if one.request_id == "a"]
    assert [one.WhichOneof("event") for one in mine] == ["started", "prompt_logprobs", "delta"]
    assert [one.logprob for one in mine[1].prompt_logprobs.logprobs] == [-1.0, -2.0, -3.0]
    assert list(mine[2].delta.token_ids) == [5]


@given(
    pieces=st.lists(
        st.tuples(st.sampled_from(IDS), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300)),
        max_size=12,
    ),
    names=st.sampled_from((IDS, ("é" * 40, "x" * 127, "y" * 300))),
)
def test_tokens_are_written_as_protobuf_would_write_them(pieces, names):
    outbox, expected = Outbox(credit=1), {}
    for request_id in names:
        outbox.put(started(request_id))
    for place, ids in pieces:
        request_id = names[IDS.index(place)]
        outbox.put_tokens(request_id, ids)
        expected.setdefault(request_id, []).extend(ids)
    for request_id in names:
        outbox.put(finished(request_id))
    frame = taken(outbox, 7)
    assert frame is not None
    assert frame.step == 7
    for request_id in names:
        mine = [one for one in frame.events if one.request_id == request_id]
        order = [one.response.WhichOneof("event") for one in mine]
        assert order == ["started", *(["delta"] if request_id in expected else []), "finished"]
        assert [token for one in mine for token in one.response.delta.token_ids] == expected.get(
            request_id, []
        )
        assert [one.final for one in mine] == [False] * (len(mine) - 1) + [True]


def test_tokens_of_both_kinds_stay_in_order():
    outbox = Outbox(credit=1)
    outbox.put_tokens("a", [1])
    outbox.put(delta("a", 2))
    outbox.put_tokens("a", [3])
    outbox.discard("b")
    frame = taken(outbox, 1)
    assert frame is not None
    assert [token for one in frame.events for token in one.response.delta.token_ids] == [1, 2, 3]
