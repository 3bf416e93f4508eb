"""Which headers pass a proxy, and what it adds (RFC 9110, section 7.6)."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Collection

from rhizome_relay.framing import tokens
from rhizome_relay.picker import Target
from rhizome_relay.request import Pairs, RelayRequest
from rhizome_relay.settings import RelaySettings

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings content-length".split()
)
"""Valid for one connection only. Content-Length is here because each side is framed anew."""

CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"cookie"))
FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")

_NEVER_SENT = HOP_BY_HOP | frozenset(FORWARDED) | {b"host", b"expect", b"forwarded", b"x-request-id"}
_NEVER_SENT_NOR_CREDENTIALS = _NEVER_SENT | CREDENTIALS
_NEVER_RETURNED = HOP_BY_HOP | {b"x-request-id", b"x-rhizome-backend", b"x-rhizome-attempts"}
_NEVER_TRAILING = (
    _NEVER_RETURNED | CREDENTIALS | {b"host", b"set-cookie", b"content-type", b"content-encoding"}
)


def in_a_loop(headers: Pairs, via: bytes) -> bool:
    """Whether a request has already passed the proxy named `via`."""
    return any(
        words[1:2] == [via]
        for name, value in headers
        if name == b"via"
        for words in map(bytes.split, value.split(b","))
    )


def request_head(request: RelayRequest, target: Target, settings: RelaySettings, length: int | None) -> bytes:
    """The head to send to a backend.

    Args:
        request: the client's.
        target: where it goes.
        settings: of the relay.
        length: of the body; `None` for chunks.
    """
    replaced = tuple([name for name, _ in target.headers]) if target.headers else ()
    known = request.known
    passed = None if known is None else known.lines.get(replaced)
    if passed is None:
        passed = _passed_on(request, replaced, settings)
        if known is not None:
            known.lines[replaced] = passed
    given = b"".join([b"%b: %b\r\n" % pair for pair in target.headers]) if target.headers else b""
    addresses, scheme, host = request.peer.encode(), b"http", request.host
    if request.trusted:
        told = request.header
        if before := b", ".join(value for name, value in request.headers if name == FORWARDED[0]):
            addresses = before + b", " + addresses
        scheme, host = told(FORWARDED[1]) or scheme, told(FORWARDED[2]) or host
    if length is None:
        framing = b"transfer-encoding: chunked\r\n"
    elif length or request.method in (b"POST", b"PUT", b"PATCH"):
        framing = b"content-length: %d\r\n" % length
    else:
        framing = b""
    origin = target.origin
    return (
        b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b%b"
        b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\n"
        b"via: %b %b\r\nx-request-id: %b\r\n\r\n"
    ) % (
        *(request.method, origin.base, request.target, origin.authority, passed, given, framing),
        *(addresses, scheme, host, request.version.encode(), settings.via, request.id),
    )


def _passed_on(request: RelayRequest, replaced: Collection[bytes], settings: RelaySettings) -> bytes:
    """Lines of a request's head that any backend gets."""
    dropped = _NEVER_SENT if settings.forward_credentials else _NEVER_SENT_NOR_CREDENTIALS
    dropped = _with_listed(dropped, request.headers).union(replaced)
    lines = [b"%b: %b\r\n" % pair for pair in request.headers if pair[0] not in dropped]
    if wants_trailers(request):
        lines.append(b"te: trailers\r\nconnection: te\r\n")
    return b"".join(lines)


def response_headers(headers: Pairs, via: bytes) -> list[bytes]:
    """Lines of a backend's response that the client gets, framing and the proxy's own left out."""
    dropped = _with_listed(_NEVER_RETURNED, headers)
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] not in dropped]
    lines.append(b"via: 1.1 %b\r\n" % via)
    return lines


def trailer_lines(trailers: Pairs) -> bytes:
    """A backend's trailers, for a client that wants them."""
    return b"".join([b"%b: %b\r\n" % pair for pair in trailers if pair[0] not in _NEVER_TRAILING])


def wants_trailers(request: RelayRequest) -> bool:
    """Whether the client can take trailers."""
    te = request.header(b"te")
    return te is not None and b"trailers" in tokens(te)


def _with_listed(dropped: frozenset[bytes], headers: Pairs) -> frozenset[bytes]:
    """Add the names that Connection lists: its sender says that they are for the next hop only."""
    for name, value in headers:
        if name == b"connection":
            lowered = value.lower()
            if lowered not in (b"keep-alive", b"close"):
                dropped |= frozenset(tokens(lowered))
    return dropped


def retry_after_s(headers: Pairs) -> float:
    """What Retry-After says, in seconds from now; 0 when it says nothing that can be read."""
    for name, value in headers:
        if name == b"retry-after":
            text = value.strip()
            if text.isdigit():
                return float(text[:9])
            try:
                when = email.utils.parsedate_to_datetime(text.decode("latin-1"))
            except ValueError:
                continue
            return max(0.0, when.timestamp() - time.time())
    return 0.0
