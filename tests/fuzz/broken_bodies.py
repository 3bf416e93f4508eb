"""Bodies that are no requests at all, and requests around them that are not as they should be."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from tests.fuzz.attack import CANARY, JSON, REQUESTS, Attack

_SEED = 7
_MUTATIONS_EACH = 60
_INSIDE = CANARY.encode()

BODIES = {
    "nothing": b"",
    "white space": b" \n\t" * 1000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "zeros": bytes(1000),
    "all bytes": bytes(range(256)) * 16,
    "UTF-16": '{"model": "x"}'.encode("utf-16"),
    "a text": b'"' + _INSIDE + b'"',
    "a list": b'["' + _INSIDE + b'"]',
    "an open object": b'{"' + _INSIDE,
    "an open text": b'{"model": "' + _INSIDE,
    "a comma too much": b'{"model": "' + _INSIDE + b'",}',
    "a comment": b"{/*" + _INSIDE + b'*/"model": 1}',
    "single quotes": b"{'model': '" + _INSIDE + b"'}",
    "two objects": b"{}{}",
    "100,000 open lists": b"[" * 100_000,
    "100,000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 open objects": b'{"a":' * 100_000,
    "a million lists in a row": b'{"a":[' + b"[]," * 999_999 + b"[]]}",
    "quotes and brackets": b'{"a":"' + b'\\"[' * 100_000 + b'"}',
    "backslashes": b'{"a":"' + b"\\\\" * 500_000 + b'"}',
    "100,000 keys": b"{" + b",".join(b'"%s%d":%d' % (_INSIDE, i, i) for i in range(100_000)) + b"}",
    "one key 100,000 times": b"{" + b",".join([b'"model":"' + _INSIDE + b'"'] * 100_000) + b"}",
    "a long key": b'{"' + _INSIDE * 100_000 + b'":1}',
    "a text of nearly 4 MiB": b'{"model":"' + b"x" * (4 * 2**20 - 100) + b'"}',
    "escapes of nearly 4 MiB": b'{"model":"' + b"\\u00e4" * 690_000 + b'"}',
    "a number of 4 MiB": b'{"n":' + b"9" * (4 * 2**20 - 100) + b"}",
    "numbers of 4 MiB": b'{"prompt":[' + b"1," * (2 * 2**20 - 100) + b"1]}",
    "5 MiB": b'{"model":"' + b"x" * (5 * 2**20) + b'"}',
}

_TYPES = (
    "",
    "text/plain",
    "application/xml",
    "multipart/form-data; boundary=x",
    "application/json; charset=utf-16",
    "application/json" + ";a=b" * 1000,
    "application/x-www-form-urlencoded",
    f"{CANARY}/{CANARY}",
)


def broken_bodies() -> Iterator[Attack]:
    for path in REQUESTS:
        for name, body in BODIES.items():
            yield Attack(f"{path}: the body is {name}", path, body)
        yield from _mutated(path)


def odd_headers() -> Iterator[Attack]:
    """Usual bodies with headers that are none, or say something else."""
    path = "/v1/chat/completions"
    body = json.dumps(REQUESTS[path]).encode()
    for kind in _TYPES:
        yield Attack(f"content-type {kind[:40]!r}", path, body, {"content-type": kind})
    for name, value in (
        ("content-encoding", "gzip"),
        ("content-encoding", f"{CANARY}"),
        ("accept", CANARY),
        ("x-request-id", f"{CANARY} {CANARY}\t"),
        ("x-request-id", "a" * 10_000),
        ("authorization", f"Bearer {CANARY}"),
        ("authorization", f"Basic {CANARY}"),
        ("traceparent", f"00-{CANARY}-1"),
        ("baggage", f"{CANARY}=1," * 100),
        ("host", f"{CANARY}.example"),
        ("host", f"127.0.0.1.{CANARY}"),
        ("host", ""),
        ("host", "[::1"),
        ("cookie", CANARY * 1000),
        ("x-forwarded-for", CANARY),
        ("x-many", CANARY * 3000),
        ("upgrade", "h2c"),
    ):
        yield Attack(f"{name}: {value[:40]}", path, body, {**JSON, name: value})
    for path in (
        f"/{CANARY}",
        f"/v1/models/{CANARY}",
        f"/v1/models/../../{CANARY}",
        f"/v1/%2e%2e/{CANARY}",
        f"/assets/../{CANARY}",
        f"/assets/..%2f{CANARY}",
        f"//{CANARY}",
        f"/v1/chat/completions/?{CANARY}",
        f"/%00{CANARY}",
        f"/%ff%fe{CANARY}",
        "/" + CANARY * 1000,
    ):
        for method in ("GET", "POST", "DELETE"):
            yield Attack(f"{method} {path[:60]}", path, body, JSON, method)
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", CANARY.upper()):
        for path in ("/v1/chat/completions", "/v1/messages", "/health", "/metrics"):
            yield Attack(f"{method} {path}", path, b"", {}, method)


def _mutated(path: str) -> Iterator[Attack]:
    """Bytes of a usual request changed, removed, doubled and added at random."""
    chance = random.Random(_SEED)
    usual = json.dumps(REQUESTS[path]).encode()
    for number in range(_MUTATIONS_EACH):
        body = bytearray(usual)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            match chance.randrange(4):
                case 0:
                    body[at] = chance.randrange(256)
                case 1:
                    del body[at : at + chance.randint(1, 8)]
                case 2:
                    body[at:at] = body[at : at + chance.randint(1, 30)]
                case _:
                    body[at:at] = chance.choice((b'"', b"{", b"]", b"\\", b"null", b"\xff", b"\\u0000"))
            body = body or bytearray(b"{")
        yield Attack(f"{path}: mutation {number}", path, bytes(body))
