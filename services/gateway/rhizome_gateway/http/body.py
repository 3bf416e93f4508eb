"""Request bodies, within limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from rhizome_gateway.errors import ApiError


async def read_json_body(
    scope: Scope, receive: Receive, *, max_bytes: int, timeout_s: float, arrived: bool = False
) -> bytes:
    """Read the body of a JSON request.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        max_bytes: the longest body.
        timeout_s: how long all of it may take.
        arrived: all of it is here, so that no timer is needed.

    Raises:
        ApiError: 415 when it is not plain JSON, 413 when it is too large (as announced, or as it turns out),
            408 when it does not arrive in time.
        ClientDisconnect: the client went away meanwhile.
    """
    headers = _headers(scope)
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not media_type.endswith(b"+json"):
        raise ApiError(
            415, "The body must be JSON; send it with 'Content-Type: application/json'.", code="not_json"
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        raise ApiError(
            415,
            "Compressed bodies are not read; send the JSON as it is, without 'Content-Encoding'.",
            code="unsupported_content_encoding",
        )
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > max_bytes):
        error = _too_large(max_bytes)
        if b"expect" in headers:  # the body stays away; the next request would be taken for it
            error.headers["Connection"] = "close"
        raise error
    message = await _part(receive, None if arrived else timeout_s)
    if not message.get("more_body"):
        body = bytes(message.get("body", b""))
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    return await _rest(receive, bytes(message.get("body", b"")), max_bytes, timeout_s)


async def _rest(receive: Receive, first: bytes, max_bytes: int, timeout_s: float) -> bytes:
    deadline = asyncio.get_running_loop().time() + timeout_s
    parts, size = [first], len(first)
    more = True
    while more:
        if size > max_bytes:
            raise _too_large(max_bytes)
        message = await _part(receive, deadline - asyncio.get_running_loop().time())
        parts.append(bytes(message.get("body", b"")))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(parts)


async def _part(receive: Receive, timeout_s: float | None) -> Message:
    try:
        if timeout_s is None:
            message = await receive()
        else:
            async with asyncio.timeout(timeout_s):
                message = await receive()
    except TimeoutError:
        raise ApiError(
            408,
            "The body did not arrive in time.",
            kind="timeout_error",
            code="timeout",
            headers={"Connection": "close"},
        ) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(reversed(scope["headers"]))  # of repeated ones the first


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"The body is too large; at most {max_bytes} bytes are accepted.", code="request_too_large"
    )
