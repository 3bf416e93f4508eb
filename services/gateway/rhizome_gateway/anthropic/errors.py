"""Every error in Anthropic's envelope: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

| status | type |
|---|---|
| 400, 405, 415 | invalid_request_error |
| 401 | authentication_error |
| 403 | permission_error |
| 404 | not_found_error |
| 408, 504 | timeout_error |
| 413 | request_too_large |
| 429 | rate_limit_error |
| 503 | overloaded_error |
| everything else | api_error |

Statuses are those of all routes: 503 where Anthropic says 529, which nothing between a client and us knows.
"""

from __future__ import annotations

from typing import Any

import orjson

from rhizome_gateway.errors import ApiError, clip

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TOO_LONG = "prompt is too long"
"""Agents look for these words, and shorten the conversation when they find them."""


def error_object(error: ApiError, request_id: str) -> dict[str, Any]:
    """The envelope, as an object. It has no place for the field that is wrong, so the message names it."""
    message = error.message
    if error.code == "context_length_exceeded":
        message = f"{_TOO_LONG}: {message}"
    elif error.param and error.param not in message:
        message = f"{clip(error.param, 128)}: {message}"
    kind = _TYPES.get(error.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": clip(message)},
        "request_id": request_id or None,
    }


def error_body(error: ApiError, request_id: str) -> bytes:
    """The envelope; see `http.hot_routes.HotRoute`."""
    return orjson.dumps(error_object(error, request_id))
