"""Ollama's routes; it says nothing of its load."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from rhizome_launcher.simulate.http.connection import Answer, HttpRequest
from rhizome_launcher.simulate.http.server import Flavour, HttpServer


def _alive(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer(b"Ollama is running", content_type="text/plain; charset=utf-8")


def _version(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer.json({"version": "0.13.0"})


def _model(server: HttpServer) -> dict[str, Any]:
    details = {"format": "gguf", "family": "simulated", "parameter_size": "0B", "quantization_level": "F16"}
    return {"name": server.model, "model": server.model, "size": 0, "digest": "", "details": details}


def _tags(server: HttpServer, request: HttpRequest) -> Answer:
    since = datetime.fromtimestamp(server.started_at, UTC).isoformat()
    return Answer.json({"models": [_model(server) | {"modified_at": since}]})


def _ps(server: HttpServer, request: HttpRequest) -> Answer:
    loaded = {"expires_at": "0001-01-01T00:00:00Z", "size_vram": 0, "context_length": server.context_tokens}
    return Answer.json({"models": [_model(server) | loaded]})


FLAVOUR: Final = Flavour(
    owned_by="library",
    routes={"/": _alive, "/api/version": _version, "/api/tags": _tags, "/api/ps": _ps},
    health=frozenset({"/"}),
    metrics=frozenset(),
    early_headers=False,
)
