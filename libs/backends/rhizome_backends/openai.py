"""Anything behind the OpenAI API, of which no more is known; and Rhizome's gateway, which tells its load."""

from __future__ import annotations

from typing import Any

import orjson

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.http_server import HttpBackend, load_of


class OpenAiServer(HttpBackend):
    """A server with the OpenAI API; one without `/health` lives as long as it answers anything.

    The server in llama-cpp-python, whose models belong to `me`, answers `/v1/models` between two generations
    only, and ends the running one to do so unless started with `--interrupt_requests false`: so only once.
    """

    kind = "openai"

    def read_models(self, document: Any) -> tuple[str, ...]:
        """Their owner tells whose server it is, too."""
        models = super().read_models(document)
        owners = {model.get("owned_by") for model in document["data"] or ()}
        self.refreshes = "me" not in owners
        if "rhizome" in owners:
            self.health_path = b"/ready"
            self.sources = ((b"/v1/metrics", read_gateway),)
        return models


def read_gateway(body: bytes) -> Load | None:
    """What the gateway repeats of its engines; null is what they did not tell."""
    document = orjson.loads(body)
    engine, queue, cache = (document[part] or {} for part in ("engine", "queue", "cache"))
    return load_of(
        running_requests=engine.get("running_requests"),
        waiting_requests=queue.get("waiting_requests"),
        waiting_tokens=queue.get("waiting_tokens"),
        kv_pages_total=cache.get("pages_total"),
        kv_pages_in_use=cache.get("pages_in_use"),
        kv_pages_cached=cache.get("pages_cached"),
        page_size=cache.get("page_size_tokens"),
    )
