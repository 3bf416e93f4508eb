"""One hostile request, and the usual ones that hostile ones are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CANARY = "Kanarienvogel7391"
"""Stands in everything that is sent, and must not stand in any error."""

_HOLE = "\ufffdHOLE\ufffd"
MODEL = "talking-model"
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Attack:
    """What is sent; it repeats the canary where a client's text may stand."""

    name: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    method: str = "POST"


def said(text: str = CANARY) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION: dict[str, Any] = {"name": "look_up", "description": CANARY, "parameters": SCHEMA}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}

REQUESTS: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": said()},
    "/v1/completions": {"model": MODEL, "prompt": CANARY},
    "/v1/embeddings": {"model": MODEL, "input": CANARY},
    "/tokenize": {"prompt": CANARY},
    "/detokenize": {"tokens": [72, 105]},
    "/v1/messages": {"model": MODEL, "messages": said(), "max_tokens": 16},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": said()},
    "/v1/responses": {"model": MODEL, "input": CANARY},
    "/v1/responses/input_tokens": {"model": MODEL, "input": CANARY},
}
"""A request that is served, for each route."""


def chat(name: str, **fields: Any) -> Attack:
    """A chat request with some fields replaced."""
    return of("/v1/chat/completions", name, **fields)


def of(path: str, name: str, **fields: Any) -> Attack:
    """The usual request of a route with some fields replaced."""
    return Attack(f"{path}: {name}", path, json.dumps({**REQUESTS[path], **fields}).encode())


def with_raw(request: Any, place: tuple[str | int, ...], raw: bytes) -> bytes:
    """A request that has raw bytes at a place, which need not be JSON."""
    copy = json.loads(json.dumps(request))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = _HOLE
    return json.dumps(copy).encode().replace(json.dumps(_HOLE).encode(), raw)
