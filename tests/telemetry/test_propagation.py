"""W3C trace context in all its carriers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome_telemetry.propagation import (
    TraceParent,
    from_headers,
    from_metadata,
    from_proto,
    parse_traceparent,
    to_metadata,
    to_proto,
)

hexadecimal = "0123456789abcdef"
parents = st.builds(
    TraceParent,
    st.text(hexadecimal, min_size=32, max_size=32).filter(lambda text: text.strip("0")),
    st.text(hexadecimal, min_size=16, max_size=16).filter(lambda text: text.strip("0")),
    st.integers(0, 255),
    st.sampled_from(["", "vendor=1", "a=1,b=2"]),
)
GOOD = f"00-{'a' * 32}-{'b' * 16}-01"


@given(parent=parents)
def test_every_carrier_keeps_everything(parent):
    assert parse_traceparent(parent.to_header(), parent.tracestate) == parent
    assert from_metadata(to_metadata(parent)) == parent
    assert from_proto(to_proto(parent)) == parent
    headers = [(key.encode(), value.encode()) for key, value in to_metadata(parent)]
    assert from_headers(headers) == parent


@given(header=st.text(max_size=80))
def test_no_header_raises(header):
    parse_traceparent(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        GOOD.upper(),
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        GOOD + "-more",
        GOOD.replace("-01", "-1"),
        GOOD.replace("a", "g"),
    ],
)
def test_malformed_headers_count_as_none(header):
    assert parse_traceparent(header) is None


def test_a_later_version_may_carry_more_fields():
    parent = parse_traceparent(f"01-{'a' * 32}-{'b' * 16}-03-more")
    assert parent is not None
    assert parent.sampled


def test_an_overlong_tracestate_is_dropped_alone():
    parent = parse_traceparent(GOOD, "x" * 513)
    assert parent is not None
    assert parent.tracestate == ""


def test_two_traceparent_headers_count_as_none():
    assert from_headers([(b"traceparent", GOOD.encode())] * 2) is None


def test_absent_carriers_are_none():
    assert from_metadata(None) is None
    assert from_metadata([("traceparent", b"\xff")]) is None
    assert from_proto(None) is None
    assert from_proto(TraceContext()) is None
    assert to_metadata(None) == []
