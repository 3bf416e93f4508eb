"""How deep a JSON body is nested, before anything that recurses sees it."""

from __future__ import annotations

from array import array
from itertools import accumulate

_STRUCTURE = b'"[]{}'
_REST = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")  # as signed bytes: one down, one up


def json_depth_ok(body: bytes, limit: int) -> bool:
    """Whether arrays and objects are nested at most `limit` deep.

    Exact for valid JSON. What is not JSON gets some answer, and is the parser's to refuse. Linear in the size
    of the body; the loops run in C, and a body with no more than `limit` opening brackets is only counted.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return True
    leafless = _brackets(body).replace(b"[]", b"")  # one level less, and most of a usual body is gone
    if leafless.count(b"[") < limit:
        return True
    if b"[" * limit in leafless:
        return False
    return max(accumulate(array("b", leafless.translate(_STEPS)))) < limit


def _brackets(body: bytes) -> bytes:
    """The brackets outside of strings, all of one kind."""
    if b"\\" in body:  # pairs of backslashes first, so that one before a quote is known to escape it
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = body.translate(_ONE_KIND, _REST)
    # Two quotes side by side change nothing: a bracket is in a string when an odd number stands before it.
    structure = structure.replace(b'""', b"")
    return b"".join(structure.split(b'"')[::2]) if b'"' in structure else structure
