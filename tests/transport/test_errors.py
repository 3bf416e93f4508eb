"""The error table, in frames, over gRPC and as HTTP."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_transport.errors import EngineError, http_error

errors = st.builds(
    EngineError,
    st.sampled_from([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]),
    st.text(max_size=50),
    reason=st.sampled_from(["QUEUE_FULL", "CONTEXT_LENGTH_EXCEEDED", "SOMETHING_ELSE"]),
    param=st.none() | st.text(min_size=1, max_size=10),
    retry_after_s=st.none() | st.integers(0, 3600).map(float),
)


@given(error=errors)
def test_a_frame_keeps_everything(error):
    again = EngineError.from_status(error.to_status())
    assert (again.code, again.message, again.reason) == (error.code, error.message, error.reason)
    assert (again.param, again.retry_after_s) == (error.param, error.retry_after_s)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
        (grpc.StatusCode.UNAUTHENTICATED, 401, "invalid_request_error"),
        (grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error"),
        (grpc.StatusCode.CANCELLED, 499, "server_error"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
        (grpc.StatusCode.UNIMPLEMENTED, 501, "server_error"),
        (grpc.StatusCode.UNAVAILABLE, 503, "server_error"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "timeout_error"),
        (grpc.StatusCode.ABORTED, 500, "server_error"),
        (grpc.StatusCode.DATA_LOSS, 500, "server_error"),
    ],
)
def test_codes_become_http_statuses(code, status, kind):
    shown = http_error(EngineError(code, "x"))
    assert (shown.status, shown.type) == (status, kind)


def test_a_reason_refines_the_code():
    error = EngineError(grpc.StatusCode.INVALID_ARGUMENT, "x", reason="CONTEXT_LENGTH_EXCEEDED")
    assert http_error(error).code == "context_length_exceeded"
