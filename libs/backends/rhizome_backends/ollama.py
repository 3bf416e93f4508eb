"""Ollama, which tells nothing of its load."""

from __future__ import annotations

from typing import Any

from rhizome_backends.http_server import HttpBackend


class OllamaServer(HttpBackend):
    """An Ollama server. What it has pulled it serves, loaded or not."""

    kind = "ollama"
    health_path = b"/"
    models_path = b"/api/tags"

    def read_models(self, document: Any) -> tuple[str, ...]:
        """Each under its name, and without the tag that is meant where none is given."""
        names = [str(model["model"]) for model in document["models"] or ()]
        return tuple(dict.fromkeys([*names, *(name.removesuffix(":latest") for name in names)]))
