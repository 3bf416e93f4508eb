"""Request bodies, within limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from rhizome_gateway.errors import ApiError


async def read_json_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Read the body of a JSON request.

    Raises:
        ApiError: 415 when it is not plain JSON, 413 when it is too large (as announced, or as it turns out),
            408 when it does not arrive in time.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError(
            415, "The body must be JSON; send it with 'Content-Type: application/json'.", code="not_json"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(
            415,
            "Compressed bodies are not read; send the JSON as it is, without 'Content-Encoding'.",
            code="unsupported_content_encoding",
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > max_bytes):
        error = _too_large(max_bytes)
        if "expect" in request.headers:  # the body stays away; the next request would be taken for it
            error.headers["Connection"] = "close"
        raise error
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {timeout_s:g} s.",
            kind="timeout_error",
            code="timeout",
            headers={"Connection": "close"},
        ) from None
    return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"The body is too large; at most {max_bytes} bytes are accepted.", code="request_too_large"
    )
