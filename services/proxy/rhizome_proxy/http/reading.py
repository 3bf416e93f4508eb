"""What the body and the headers of an HTTP request tell a policy.

The text of a prompt is what comes before it in the rendered prompt, first things first: tools and system
prompt, then the conversation. Equal prefixes of prompts so become equal prefixes of text, whatever the other
fields are and in whichever order they come. Images and sound become a few tokens to a model, however many
bytes they are; they are taken for about a thousand.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from rhizome_relay.errors import bad_request
from rhizome_relay.request import RelayRequest
from rhizome_routing.admission import PriorityClass
from rhizome_routing.policies.ask import Ask
from rhizome_telemetry import semconv

SESSION_HEADERS: Final = frozenset((b"x-session-id", b"session-id", b"x-rhizome-session", b"session_id"))
_SESSION_FIELDS: Final = ("prompt_cache_key", "session_id", "user", "safety_identifier")

_PROMPT_FIELDS: Final = ("tools", "system", "instructions", "messages", "prompt", "input", "inputs")
"""In the order in which chat templates render them."""

_BASE64: Final = b";base64,"
_DATA: Final = b'"data":"'
_FILE: Final = re.compile(b"(" + _BASE64 + b"|" + _DATA + b")")
_FILE_BYTES: Final = 1024
"""What is shorter than this is text that may be anything."""

_DIGESTS: Final = 64

_OPERATIONS: Final = {
    **dict.fromkeys(
        (b"/v1/chat/completions", b"/v1/messages", b"/v1/responses", b"/api/chat"), semconv.OPERATION_CHAT
    ),
    **dict.fromkeys(
        (
            b"/v1/completions",
            b"/completion",
            b"/completions",
            b"/generate",
            b"/generate_stream",
            b"/api/generate",
        ),
        semconv.OPERATION_TEXT_COMPLETION,
    ),
    **dict.fromkeys(
        (b"/v1/embeddings", b"/embed", b"/embedding", b"/embeddings", b"/api/embed", b"/api/embeddings"),
        semconv.OPERATION_EMBEDDINGS,
    ),
}
"""By path."""


def read_ask(request: RelayRequest) -> Ask | None:
    """What is to be run; `None` for a request without a prompt."""
    document = request.json()
    if not isinstance(document, dict):
        return None
    key = _affinity_key(request, document)
    named = document.get("model")
    namespace = named if isinstance(named, str) else ""
    prompt = document.get("prompt")
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        with contextlib.suppress(OverflowError):  # no token id; the backend says so
            ids = np.array(prompt, np.uint32)
            return Ask(ids, affinity_key=key)  # as vLLM names what it caches
    parts = [document[name] for name in _PROMPT_FIELDS if document.get(name)]
    if not parts:
        return None
    try:
        text = b"".join([part.encode() if isinstance(part, str) else orjson.dumps(part) for part in parts])
    except TypeError:  # the reader goes deeper than the writer
        text = request.body
    return Ask.of_text(_without_files(text), namespace=namespace, affinity_key=key)


def _without_files(text: bytes) -> bytes:
    """Put digests in the place of what is coded as base64 in JSON: equal files stay equal text."""
    if _BASE64 not in text and _DATA not in text:  # a twentieth of what the expression takes
        return text
    head, *rest = _FILE.split(text)
    told = [head]
    for marker, behind in zip(rest[::2], rest[1::2], strict=True):
        end = behind.find(b'"')
        if end >= _FILE_BYTES:
            digest = hashlib.blake2b(behind[:end], digest_size=32).hexdigest()
            behind = digest.encode() * _DIGESTS + behind[end:]
        told += (marker, behind)
    return b"".join(told)


def operation_of(request: RelayRequest) -> str:
    """OpenTelemetry's word for what is asked; empty where it has none, as for a list of models."""
    return _OPERATIONS.get(request.path) or _OPERATIONS.get(request.path.rstrip(b"/"), "")


def tenant_of(request: RelayRequest) -> str:
    """Whose fair share a request uses: its key's, or its address's where it has none.

    A peer whose X-Forwarded-* are believed, such as nginx, may name the tenant.
    """
    if request.trusted and (told := request.header(b"x-rhizome-tenant")):
        return told.decode("latin-1")
    credential = request.header(b"authorization") or request.header(b"x-api-key")
    if credential:
        return hashlib.blake2b(credential, digest_size=16).hexdigest()
    forwarded = request.header(b"x-forwarded-for") if request.trusted else None
    return forwarded.partition(b",")[0].decode("latin-1").strip() if forwarded else request.peer


def priority_of(request: RelayRequest) -> PriorityClass:
    """How urgent a request is; only a trusted peer may say that it is more so than others.

    Raises:
        HttpError: there is no such class.
    """
    told = request.header(b"x-rhizome-priority")
    if not told:
        return PriorityClass.NORMAL
    try:
        priority = PriorityClass.of(told.decode("latin-1"))
    except ValueError:
        raise bad_request("x-rhizome-priority must be high, normal or low.") from None
    return priority if request.trusted else max(priority, PriorityClass.NORMAL)


def _affinity_key(request: RelayRequest, document: Mapping[str, Any]) -> str:
    if not SESSION_HEADERS.isdisjoint(request.fields):
        told = next(value for name, value in request.headers if name in SESSION_HEADERS)
        return told.decode("latin-1")
    for field in _SESSION_FIELDS:
        key = document.get(field)
        if isinstance(key, str) and key:
            return key
    return ""
