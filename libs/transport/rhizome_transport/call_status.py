"""What the end of a gRPC call means: its trailers, or what an HTTP/2 server did instead of sending any.

The tables are those of gRPC's `PROTOCOL-HTTP2.md` and `http-grpc-status-mapping.md`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from rhizome_transport.errors import EngineError

_OF_RESET: Final = {
    7: grpc.StatusCode.UNAVAILABLE,  # REFUSED_STREAM
    8: grpc.StatusCode.CANCELLED,
    11: grpc.StatusCode.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    12: grpc.StatusCode.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}
_OF_HTTP: Final = {
    400: grpc.StatusCode.INTERNAL,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.UNAVAILABLE,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}
_LONGEST_NUMBER: Final = 3
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


def of_reset(error: int) -> EngineError:
    """Of a stream that was reset with an HTTP/2 error."""
    code = _OF_RESET.get(error, grpc.StatusCode.INTERNAL)
    return EngineError(code, f"the server reset the stream (HTTP/2 error {error})")


def of_http(status: str) -> EngineError:
    """Of an answer that is not gRPC's."""
    code = _OF_HTTP.get(_number(status), grpc.StatusCode.UNKNOWN)
    return EngineError(
        code, f"who answered does not speak gRPC (HTTP status {status[:_LONGEST_NUMBER] or 'absent'})"
    )


def of_trailers(trailers: Mapping[str, str]) -> EngineError:
    """What the call's trailers say; also a good end is the end of a stream that was to go on."""
    number, message = trailers.get("grpc-status", ""), unquote(trailers.get("grpc-message", ""))
    code = _BY_NUMBER.get(_number(number), grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.OK:
        return EngineError(grpc.StatusCode.UNAVAILABLE, "the engine ended the stream")
    packed = trailers.get("grpc-status-details-bin")
    if packed:
        try:
            details = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
            status = status_pb2.Status.FromString(details)
            if status.code == code.value[0]:
                return EngineError.from_status(status)
        except (ValueError, DecodeError):
            pass
    return EngineError(code, message or "the engine ended the stream")


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_NUMBER else -1
