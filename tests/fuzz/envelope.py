"""What every error of the gateway looks like."""

from __future__ import annotations

from typing import Any

import orjson

MAX_BODY_BYTES = 4096


def wrong_with_error(path: str, status: int, headers: Any, body: bytes) -> str:
    """Why an error is not as it has to be; empty where it is."""
    if headers.get("content-type") != "application/json":
        return f"content-type {headers.get('content-type')}"
    if not headers.get("x-request-id") and not _is_below_http(body):
        return "no x-request-id"
    if len(body) > MAX_BODY_BYTES:
        return f"an error of {len(body)} bytes"
    if status in (429, 503) and not headers.get("retry-after", "").isdigit():
        return "no Retry-After"
    if b"Traceback" in body or b".py" in body or b"127.0.0.1:" in body:
        return "it tells of the inside"
    answer = orjson.loads(body)
    error = answer.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str) or not error["message"]:
        return f"no message in {body[:200]!r}"
    if path.startswith("/v1/messages") and not _is_below_http(body):
        whole = set(answer) == {"type", "error", "request_id"} and set(error) == {"type", "message"}
    else:
        whole = set(error) == {"message", "type", "param", "code"}
        whole = whole and isinstance(error["code"], str)
    return "" if whole else f"not the envelope: {body[:200]!r}"


def _is_below_http(body: bytes) -> bool:
    """It was no request: it has no id, and no path that could name an envelope."""
    return b'"invalid_http"' in body or b'"headers_too_large"' in body
