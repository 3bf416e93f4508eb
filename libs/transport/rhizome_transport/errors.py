"""The one table of errors: what an engine raises, what gRPC carries, what HTTP shows.

| gRPC code | HTTP | OpenAI type | default OpenAI code |
|---|---|---|---|
| INVALID_ARGUMENT, OUT_OF_RANGE, FAILED_PRECONDITION | 400 | invalid_request_error | invalid_value |
| UNAUTHENTICATED | 401 | invalid_request_error | invalid_api_key |
| PERMISSION_DENIED | 403 | permission_error | permission_denied |
| NOT_FOUND | 404 | invalid_request_error | model_not_found |
| CANCELLED | 499 | server_error | cancelled |
| RESOURCE_EXHAUSTED | 429 | rate_limit_error | rate_limit_exceeded |
| UNIMPLEMENTED | 501 | server_error | not_implemented |
| UNAVAILABLE | 503 | server_error | engine_unavailable |
| DEADLINE_EXCEEDED | 504 | timeout_error | timeout |
| everything else | 500 | server_error | internal_error |

A `reason` (UPPER_SNAKE, as `google.rpc.ErrorInfo` wants it) refines the OpenAI code:
`CONTEXT_LENGTH_EXCEEDED` becomes `context_length_exceeded`, `QUEUE_FULL` and `OUT_OF_MEMORY` 503 /
`overloaded`, `ENGINE_LOST` 503 / `engine_unavailable`: an answer that was not given can be asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from rhizome.common.v1 import common_pb2

DOMAIN = "rhizome"

MAX_MESSAGE_CHARS = 1024
"""A message may quote what a peer sent, and travels up to three times in HTTP/2 trailers, whose usual limit
is 8 KiB together."""

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class EngineError(Exception):
    """Why an engine, or something on the way to it, did not answer.

    Attributes:
        code: the gRPC status code.
        message: what was wrong, what was expected and what to do; safe to show to a user. Cut to
            `MAX_MESSAGE_CHARS`.
        reason: UPPER_SNAKE refinement, such as `CONTEXT_LENGTH_EXCEEDED`; empty when there is none.
        param: the request field that is wrong, where one is.
        retry_after_s: when to try again, in seconds, where waiting helps.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[: MAX_MESSAGE_CHARS - 1] + "…"
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.param = param
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"EngineError({self.code.name}, {self.message!r}, reason={self.reason!r})"

    def to_status(self) -> common_pb2.Status:
        """As it travels in a frame."""
        status = common_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.extend(self._details())
        return status

    def to_rpc_status(self) -> status_pb2.Status:
        """As `grpc_status.rpc_status.to_status` wants it."""
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=self._details())

    @classmethod
    def from_status(cls, status: common_pb2.Status | status_pb2.Status) -> EngineError:
        """From a frame or from `grpc-status-details-bin`; details that nobody knows are ignored."""
        reason, param, retry_after_s = "", None, None
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        for detail in status.details:
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(bad) and bad.field_violations:
                param = bad.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
        return cls(code, status.message, reason=reason, param=param, retry_after_s=retry_after_s)

    def _details(self) -> list[any_pb2.Any]:
        details = [any_pb2.Any()]
        details[0].Pack(
            error_details_pb2.ErrorInfo(
                reason=self.reason or code_pb2.Code.Name(self.code.value[0]), domain=DOMAIN
            )
        )
        if self.param is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.param, description=self.message
            )
            details.append(any_pb2.Any())
            details[-1].Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            details.append(any_pb2.Any())
            details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return details


@dataclass(frozen=True, slots=True)
class HttpError:
    """How an error looks over HTTP.

    Attributes:
        status: HTTP status code.
        type: `error.type` of the OpenAI envelope.
        code: `error.code` of the OpenAI envelope.
    """

    status: int
    type: str
    code: str


_INTERNAL = HttpError(500, "server_error", "internal_error")
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: HttpError(400, "invalid_request_error", "invalid_value"),
    grpc.StatusCode.OUT_OF_RANGE: HttpError(400, "invalid_request_error", "invalid_value"),
    grpc.StatusCode.FAILED_PRECONDITION: HttpError(400, "invalid_request_error", "invalid_value"),
    grpc.StatusCode.UNAUTHENTICATED: HttpError(401, "invalid_request_error", "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: HttpError(403, "permission_error", "permission_denied"),
    grpc.StatusCode.NOT_FOUND: HttpError(404, "invalid_request_error", "model_not_found"),
    grpc.StatusCode.CANCELLED: HttpError(499, "server_error", "cancelled"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: HttpError(429, "rate_limit_error", "rate_limit_exceeded"),
    grpc.StatusCode.UNIMPLEMENTED: HttpError(501, "server_error", "not_implemented"),
    grpc.StatusCode.UNAVAILABLE: HttpError(503, "server_error", "engine_unavailable"),
    grpc.StatusCode.DEADLINE_EXCEEDED: HttpError(504, "timeout_error", "timeout"),
}
_HTTP_BY_REASON = {
    "CONTEXT_LENGTH_EXCEEDED": HttpError(400, "invalid_request_error", "context_length_exceeded"),
    "QUEUE_FULL": HttpError(503, "server_error", "overloaded"),
    "OUT_OF_MEMORY": HttpError(503, "server_error", "overloaded"),
    "ENGINE_LOST": HttpError(503, "server_error", "engine_unavailable"),
    "MODEL_LOADING": HttpError(503, "server_error", "model_loading"),
}


def http_error(error: EngineError) -> HttpError:
    """Translate an engine's error for HTTP; the module's table says how."""
    return _HTTP_BY_REASON.get(error.reason) or _HTTP.get(error.code, _INTERNAL)


def from_rpc_error(error: grpc.RpcError | EngineError) -> EngineError:
    """Translate what grpc raised, with its details where the server sent them."""
    if isinstance(error, EngineError):
        return error
    from grpc_status import rpc_status

    call = error
    code = getattr(call, "code", lambda: grpc.StatusCode.UNKNOWN)()
    message = getattr(call, "details", lambda: "")() or ""
    metadata = getattr(call, "trailing_metadata", lambda: None)()
    for key, value in metadata or ():
        if key == rpc_status.GRPC_DETAILS_METADATA_KEY and isinstance(value, bytes):
            return EngineError.from_status(status_pb2.Status.FromString(value))
    return EngineError(code, message)
