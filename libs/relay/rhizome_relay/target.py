"""Request targets that every server behind us reads in the same way, or none."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from rhizome_relay.errors import HttpError, bad_request

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")

_PLAIN = re.compile(rb"/(?:[A-Za-z0-9_\-]+/?)*")
_AMBIGUOUS = re.compile(rb"//|/\.\.?(?:[/;]|$)|[\\%#\x00-\x20\x7f]")


def read_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Path and query as sent, the path decoded, and the host that an absolute target names.

    A path must have one reading: no empty or dot segments, nothing encoded twice, or a backend could take it
    for another path than the allow-list does.

    Raises:
        HttpError: the method is not relayed, the target is no path or has more than one reading.
    """
    if method not in METHODS:
        message = "The method is not one that this server relays."
        raise HttpError(405, "method_not_allowed", message, headers=((b"allow", b", ".join(METHODS)),))
    host = None
    if not target.startswith(b"/"):
        scheme, _, rest = target.partition(b"://")
        host, _, path = rest.partition(b"/")
        if scheme.lower() not in (b"http", b"https") or not host or re.search(rb"[@?#]", host):
            raise bad_request("The request target must be a path that begins with a slash.")
        target = b"/" + path
    path = target.partition(b"?")[0]
    if _PLAIN.fullmatch(path) is None:
        path = unquote_to_bytes(path)
        if _AMBIGUOUS.search(path):
            raise bad_request("The path must have no empty or dot segments and nothing encoded twice.")
    if b"#" in target:
        raise bad_request("The request target must have no fragment.")
    return target, path, host
