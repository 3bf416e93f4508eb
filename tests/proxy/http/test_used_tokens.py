"""What a request is taken to have cost its tenant, however its server tells."""

from __future__ import annotations

import pytest

from rhizome_proxy.http.picker import Journey, _used_tokens
from rhizome_relay.picker import Result
from rhizome_relay.request import RelayRequest

BEGINNING = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":3,"output_tokens":0}}}\n\n'
END = b'event: message_delta\ndata: {"delta":{},"usage":{"output_tokens":700}}\n\n'
PROMPT = 10


def journey_of(*, streamed: bool) -> Journey:
    request = RelayRequest(b"POST", b"/v1/chat/completions", b"/v1/chat/completions", "1.1", [])
    journey = Journey(request)
    journey.prompt, journey.streamed = PROMPT, streamed
    return journey


@pytest.mark.parametrize(
    ("streamed", "whole", "pieces", "usage", "cost"),
    [
        pytest.param(True, True, 5, END, 710, id="a stream that told at its end"),
        pytest.param(True, True, 1, BEGINNING + END, 710, id="a stream that came at once"),
        pytest.param(True, False, 5000, BEGINNING, 5010, id="a stream that broke off"),
        pytest.param(True, True, 40, b"", 50, id="a stream that told nothing"),
        pytest.param(False, True, 2, b'{"usage":{"completion_tokens": 7}}', 17, id="an answer"),
        pytest.param(
            False, True, 2, b'{"input":{"output_tokens":0},"usage":{"output_tokens":7}}', 17, id="a call"
        ),
        pytest.param(False, True, 2, b"", None, id="an answer that told nothing"),
    ],
)
def test_cost(streamed: bool, whole: bool, pieces: int, usage: bytes, cost: int | None) -> None:
    journey = journey_of(streamed=streamed)
    result = Result(200, whole, "one", 1, 0.0, 0.0, 0.0, pieces, usage)
    assert _used_tokens(journey, result) == cost


def test_what_nobody_tried_costs_nothing() -> None:
    journey = journey_of(streamed=True)
    assert _used_tokens(journey, Result(503, False, "", 0, 0.0, 0.0, 0.0)) == 0
