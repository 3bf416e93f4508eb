"""Where a message ends (RFC 9112, section 6). Two readings of it are what requests are smuggled through.

The parser already refuses both Content-Length and Transfer-Encoding, repeated ones, folded lines, bare line
feeds and odd chunk sizes; here is what it lets pass.
"""

from __future__ import annotations

from rhizome_relay.errors import HttpError, bad_request
from rhizome_relay.request import Pairs, RelayRequest

_ONCE = (b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"x-request-id")


class MalformedResponseError(Exception):
    """A backend's response has no one end."""


def read_head(request: RelayRequest, host: bytes | None, upgrading: bool) -> None:
    """Set `host`, `length`, `keep_alive`, `expects_continue` and `id` of a request from its headers.

    Args:
        request: with its headers.
        host: from an absolute target, which wins over the header.
        upgrading: whether the client asks for another protocol.

    Raises:
        HttpError: the head has several readings, or asks for what is not offered.
    """
    seen = request.fields
    options = seen.get(b"connection")
    if len(seen) != len(request.headers):
        names = [name for name, _ in request.headers]
        if repeated := [name for name in _ONCE if names.count(name) > 1]:
            raise bad_request(f"The header {repeated[0].decode()} must not be repeated.")
        if options is not None:
            options = b",".join([value for name, value in request.headers if name == b"connection"])
    modern = request.version == "1.1"
    if b"host" not in seen and modern:
        raise bad_request("A request of HTTP/1.1 must have a Host header.")
    request.host = seen.get(b"host", b"") if host is None else host
    request.id = seen.get(b"x-request-id", b"")
    if (coding := seen.get(b"transfer-encoding")) is not None:
        if b"content-length" in seen or not modern:
            raise bad_request("Transfer-Encoding must not come with Content-Length or in HTTP/1.0.")
        if coding.strip().lower() != b"chunked":
            raise HttpError(501, "unknown_transfer_coding", "The only transfer coding is `chunked`, once.")
        request.length = None
    elif (length := seen.get(b"content-length")) is not None:
        request.length = content_length(length)
    if options is not None:
        request.keep_alive = modern and b"close" not in tokens(options)
    if upgrading and seen.get(b"upgrade", b"").strip().lower() != b"h2c":
        raise HttpError(501, "no_upgrade", "This server changes to no other protocol; use plain HTTP.")
    if (expect := seen.get(b"expect")) is not None and modern:
        if expect.strip().lower() != b"100-continue":
            raise HttpError(417, "unknown_expectation", "The only expectation is `100-continue`.")
        request.expects_continue = request.length != 0


def read_response_head(status: int, head_only: bool, version: str, headers: Pairs) -> tuple[int, bool]:
    """The length of a response's body, `CHUNKED` or `UNTIL_CLOSE`, and whether the connection stays.

    Raises:
        MalformedResponseError: its headers disagree.
    """
    length: bytes | None = None
    coding: bytes | None = None
    stays = version == "1.1"
    for name, value in headers:
        if name == b"content-length":
            if length is not None:
                raise MalformedResponseError("Content-Length is repeated")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None:
                raise MalformedResponseError("Transfer-Encoding is repeated")
            coding = value
        elif name == b"connection" and b"close" in tokens(value):
            stays = False
    odd = length is not None or version != "1.1"
    if coding is not None and (odd or coding.strip().lower() != b"chunked"):
        raise MalformedResponseError("Transfer-Encoding is not `chunked` alone")
    if head_only or status in (204, 304):
        return 0, stays
    if coding is not None:
        return CHUNKED, stays
    if length is None:
        return UNTIL_CLOSE, False
    try:
        return content_length(length), stays
    except HttpError:
        raise MalformedResponseError("Content-Length is no number") from None


def content_length(value: bytes) -> int:
    """Read a Content-Length.

    Raises:
        HttpError: it is no number.
    """
    digits = value.strip()
    if not digits.isdigit() or len(digits) > 18:
        raise bad_request("Content-Length must be one decimal number.")
    return int(digits)


def tokens(value: bytes) -> list[bytes]:
    """Members of a comma-separated list, in lower case."""
    return [token for part in value.lower().split(b",") if (token := part.strip())]


CHUNKED = -1
UNTIL_CLOSE = -2
