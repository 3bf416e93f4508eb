"""Finding out what answers at an address: whom its models belong to, else which routes it has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
import orjson

from rhizome_backends.base import Probe
from rhizome_backends.http_server import HttpBackend, ask, refusal
from rhizome_backends.llamacpp import LlamaCppServer
from rhizome_backends.ollama import OllamaServer
from rhizome_backends.openai import OpenAiServer
from rhizome_backends.sglang import SglangServer
from rhizome_backends.tgi import TgiServer
from rhizome_backends.vllm import VllmServer
from rhizome_relay.fetch import Fetched
from rhizome_relay.picker import Origin
from rhizome_relay.pool import Pools
from rhizome_transport.errors import EngineError

_ALL: Final = (VllmServer, LlamaCppServer, SglangServer, TgiServer, OllamaServer, OpenAiServer)
HTTP_KINDS: Final[Mapping[str, type[HttpBackend]]] = {server.kind: server for server in _ALL}

_OWNERS: Final = {
    "vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "library": "ollama", "rhizome": "openai",
    "me": "openai",
}  # fmt: skip
"""In TGI a model belongs to itself; `me` is the server in llama-cpp-python."""

_ROUTES: Final = (
    ("llamacpp", b"/props", "default_generation_settings"),
    ("tgi", b"/info", "model_id"),
    ("ollama", b"/api/version", "version"),
    ("sglang", b"/server_info", "page_size"),
    ("sglang", b"/get_server_info", "page_size"),
    ("vllm", b"/version", "version"),
)
"""Kinds, and a field of what a route answers that only they have; the first one counts."""


async def detect(
    pools: Pools, origin: Origin, headers: Sequence[tuple[bytes, bytes]], timeout_s: float
) -> str:
    """The kind of a server; `openai` for what has the API and is none of the others.

    Raises:
        EngineError: it cannot be reached, does not serve yet, did not answer in time, or is no such server.
    """
    models = await ask(pools, origin, b"/v1/models", headers, timeout_s)
    reason = refusal(models)
    if models.status >= 500:
        raise EngineError(grpc.StatusCode.UNAVAILABLE, reason)
    listed = _fields(models)
    entries = listed.get("data")
    entries = entries if isinstance(entries, list) else []
    owners = [entry.get("owned_by") for entry in entries if isinstance(entry, dict)]
    if known := {_OWNERS[owner] for owner in owners if isinstance(owner, str) and owner in _OWNERS}:
        return known.pop() if len(known) == 1 else OpenAiServer.kind  # a router before several kinds
    asking = (ask(pools, origin, path, headers, timeout_s) for _, path, _ in _ROUTES)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    for (kind, _, field), answer in zip(_ROUTES, answers, strict=True):
        if isinstance(answer, Fetched) and field in _fields(answer):
            return kind
    if "data" not in listed:
        reason = reason or "it lists no models at /v1/models and is none of the known kinds"
        raise EngineError(grpc.StatusCode.UNAVAILABLE, reason)
    return OpenAiServer.kind


def _fields(answer: Fetched) -> dict[str, Any]:
    try:
        document = orjson.loads(answer.body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        document = None
    return document if isinstance(document, dict) else {}


class DetectingServer(HttpBackend):
    """A server whose kind is not configured: found out by its first good answer, and anew after it was down.

    Attributes:
        kind: empty until known.
    """

    _server: HttpBackend | None = None
    _sure = False

    async def probe(self, timeout_s: float) -> Probe:
        """Find out the kind if need be, then ask as that kind is asked."""
        began = asyncio.get_running_loop().time()
        try:
            if not self._sure or self._server is None:
                kind = await detect(self._pools, self.origin, self.headers, timeout_s)
                if self._server is None or self._server.kind != kind:
                    self._server = HTTP_KINDS[kind](self._pools, self.origin, self.headers)
                    self.kind = kind
                self._sure = True
                timeout_s -= asyncio.get_running_loop().time() - began
            probe = await self._server.probe(max(0.0, timeout_s))
        except EngineError as error:
            self._sure = self._sure and error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        self._sure = probe.serving
        return probe
